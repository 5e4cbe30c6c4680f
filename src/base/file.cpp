#include "dfm/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "dfm/base/error.h"

namespace dfm {
namespace {

[[noreturn]] void throw_errno(const std::filesystem::path& path, const char* what) {
  const int error = errno;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    throw ResourceError("{}: cannot {}: {}; hint: free some space", path.string(), what, std::strerror(error));
  }
  throw DataError("{}: cannot {}: {}", path.string(), what, std::strerror(error));
}

void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(folder, "open folder");
  ::fsync(descriptor);  // some file systems refuse to sync folders; the rename itself has been done
  ::close(descriptor);
}

}  // namespace

File::File(std::filesystem::path path, Mode mode) : path_(std::move(path)) {
  const int flags = mode == Mode::kRead    ? O_RDONLY
                    : mode == Mode::kWrite ? O_WRONLY  // read too, NFS would write back whole pages: other hosts' bytes
                    : mode == Mode::kCreate ? O_RDWR | O_CREAT | O_TRUNC
                                            : O_WRONLY | O_CREAT | O_APPEND;
  descriptor_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw_errno(path_, (flags & O_CREAT) == 0 ? "open" : "create");
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

std::uint64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw_errno(path_, "stat");
  return static_cast<std::uint64_t>(status.st_size);
}

void File::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_errno(path_, "write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void File::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_errno(path_, "write");
    offset += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void File::allocate(std::uint64_t size) {
  const auto length = static_cast<off_t>(size);
  if (::ftruncate(descriptor_, length) != 0) throw_errno(path_, "make room for");
  int result = 0;
  do {
    result = size == 0 ? 0 : ::fallocate(descriptor_, 0, 0, length);
  } while (result != 0 && errno == EINTR);
  // Others are no answer to the question: file systems that cannot tell beforehand.
  if (result != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) throw_errno(path_, "make room for");
}

void File::read_at(std::uint64_t offset, std::span<std::byte> bytes) const {
  const std::uint64_t end = offset + bytes.size();
  while (!bytes.empty()) {
    const ssize_t count = ::pread(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_errno(path_, "read");
    if (count == 0)
      throw DataError("{}: got {} bytes, want at least {}; hint: the file is cut short", path_.string(), size(), end);
    offset += static_cast<std::uint64_t>(count);
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void File::sync() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL && errno != EROFS) throw_errno(path_, "sync");
}

void File::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  if (descriptor >= 0 && ::close(descriptor) != 0) throw_errno(path_, "close");
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw_errno(path, "open");
  struct stat status {};
  const bool is_regular = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const auto size = static_cast<std::size_t>(status.st_size);
  void* address = is_regular && size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0) : nullptr;
  ::close(descriptor);
  if (!is_regular) throw DataError("{}: got something that is not a file, want a file", path.string());
  if (address == MAP_FAILED) throw_errno(path, "map");
  bytes_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

std::string read_text_file(const std::filesystem::path& path) {
  const File file(path, File::Mode::kRead);
  std::string text(file.size(), '\0');
  file.read_at(0, {reinterpret_cast<std::byte*>(text.data()), text.size()});
  return text;
}

void write_file_atomically(const std::filesystem::path& path, std::string_view contents) {
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  File file(temporary, File::Mode::kCreate);
  file.write(as_bytes(contents));
  file.sync();
  file.close();
  rename_durably(temporary, path);
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) throw_errno(to, "rename to");
  sync_folder(to.parent_path());
}

std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, name.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<std::size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 0; i < name.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i + 1;
      for (std::size_t j = 0; j < candidate.size(); ++j) {
        const std::size_t substituted = diagonal + (name[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace dfm
