#pragma once
// Files that are whole or absent: written beside their final name, synced, renamed.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace dfm {

// Owns a file descriptor; the path is kept for messages. Errors: a full disk is ResourceError, all else DataError.
class File {
 public:
  enum class Mode { kRead, kCreate /* truncates */, kAppend, kWrite /* one that exists, kept */ };
  File(std::filesystem::path path, Mode mode);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::uint64_t size() const;
  void write(std::span<const std::byte> bytes);
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  // Makes the file `size` bytes long, with the space for them where the file system can promise it: a disk that is too
  // full says so here.
  void allocate(std::uint64_t size);
  // Fills `bytes`; fewer bytes in the file is a DataError that says so.
  void read_at(std::uint64_t offset, std::span<std::byte> bytes) const;
  void sync();
  void close();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// A read-only memory map of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string read_text_file(const std::filesystem::path& path);
// Writes `path`.tmp, syncs it, renames it to `path`, syncs the folder.
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);
// Renames and syncs the folder that holds `to`.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);
// The nearest of `candidates` by edit distance, or "" if none is near: for "did you mean".
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace dfm
