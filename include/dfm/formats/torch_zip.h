#pragma once
// The zip container of torch.save: entries STORED, data at multiples of 64 bytes. Reading trusts nothing but what the
// central directory and the local headers agree on. Writing is in two steps, so that many writers can fill one file:
// every offset follows from names and sizes alone (plan_zip), checksums come last (zip_header, zip_directory).
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dfm::formats {

inline constexpr std::uint64_t kZipAlignment = 64;

struct ZipEntry {
  std::string name;
  std::uint64_t header_offset = 0, data_offset = 0, size = 0;
  std::uint32_t crc32 = 0;
  bool is_compressed = false;  // then `size` is that of the compressed data
};

// Reads `bytes.size()` bytes at an offset; throws when the file is shorter.
using ReadAt = std::function<void(std::uint64_t offset, std::span<std::byte> bytes)>;

// The entries in directory order. DataError that names file and entry: no zip, cut, entries that are compressed,
// encrypted, overlapping, out of range or named twice, a local header that contradicts the directory. Compressed ones
// can be allowed: TorchScript archives compress their code, which nothing here reads.
std::vector<ZipEntry> read_zip_directory(const ReadAt& read_at, std::uint64_t file_size, const std::string& name,
                                         bool allow_compressed = false);
ReadAt read_from(std::span<const std::byte> bytes, const std::string& name);

struct ZipPlan {
  std::vector<ZipEntry> entries;  // crc32 is filled in by the writer
  std::uint64_t directory_offset = 0;
};
ZipPlan plan_zip(const std::vector<std::pair<std::string, std::uint64_t>>& names_and_sizes);
// The bytes from header_offset to data_offset, of the entry's final crc32.
std::string zip_header(const ZipEntry& entry);
// Central directory and end records, to stand at directory_offset.
std::string zip_directory(const ZipPlan& plan);
// CRC-32 as zip has it. `crc` is the value of the bytes before.
std::uint32_t zip_crc32(std::span<const std::byte> bytes, std::uint32_t crc = 0);

}  // namespace dfm::formats
