#pragma once
// webdataset tars: what Python's tarfile, webdataset and megatron-energon read. Layout and rules: docs/formats.md.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dfm/base/file.h"

namespace dfm::formats {

struct TarMember {
  std::string name;
  std::uint64_t header_offset = 0;  // of the first header of the member, a preceding pax or GNU header included
  std::uint64_t data_offset = 0;
  std::uint64_t size = 0;
};

struct TarListing {
  std::vector<TarMember> members;  // regular files, in order
  std::uint64_t end_offset = 0;    // of the end-of-archive block
};

// All regular members in order. Understands ustar, pax (x, g) and GNU long names. A cut or damaged archive is a
// DataError that names the archive and the place.
std::vector<TarMember> list_tar(const std::filesystem::path& path);
TarListing read_tar_listing(const std::filesystem::path& path);
TarListing read_tar_listing(std::span<const std::byte> archive, const std::string& name);

// A member's name as webdataset and energon take it: the key (folder included) ends at the first dot of the base name,
// the rest is the part. Nothing for names that are no sample's (`__meta__`, hidden files, no dot).
struct SampleName {
  std::string key, part;
};
std::optional<SampleName> split_sample_name(std::string_view member_name);

// Plain ustar, integer mtime 0, mode 0444, uid = gid = 0, bigdata:bigdata, padded to 10240 bytes at close(). Written to
// `path` itself: write beside and rename where the final name must mean complete.
class TarWriter {
 public:
  explicit TarWriter(const std::filesystem::path& path);
  // Returns where the member lies.
  TarMember add(const std::string& name, std::span<const std::byte> bytes);
  [[nodiscard]] std::uint64_t offset() const { return offset_; }
  void close();  // end of archive, synced

 private:
  File file_;
  std::uint64_t offset_ = 0;
};

// `<shard>.tar.idx`: u64 little endian, the offset of each sample's first header, then of the end-of-archive block
// (TarWriter::offset() before close()). Written atomically.
void write_tar_index(const std::filesystem::path& path, std::span<const std::uint64_t> offsets);
std::vector<std::uint64_t> read_tar_index(const std::filesystem::path& path);

}  // namespace dfm::formats
