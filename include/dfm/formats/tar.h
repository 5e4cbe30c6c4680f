#pragma once
// webdataset tars: what Python's tarfile, webdataset and megatron-energon read. Layout and rules: docs/formats.md.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "dfm/base/file.h"

namespace dfm::formats {

struct TarMember {
  std::string name;
  std::uint64_t header_offset = 0;  // of the first header of the member, a preceding pax or GNU header included
  std::uint64_t data_offset = 0;
  std::uint64_t size = 0;
};

// All regular members in order. Understands ustar, pax (x, g) and GNU long names. A cut or damaged archive is a
// DataError.
std::vector<TarMember> list_tar(const std::filesystem::path& path);

// Plain ustar, integer mtime 0, mode 0444, uid = gid = 0, bigdata:bigdata, padded to 10240 bytes at close().
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

// `<shard>.tar.idx`: u64 little endian, the offset of each sample's first header, then of the end-of-archive block.
void write_tar_index(const std::filesystem::path& path, std::span<const std::uint64_t> offsets);

}  // namespace dfm::formats
