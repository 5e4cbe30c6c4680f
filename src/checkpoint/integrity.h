#pragma once
// The entry `integrity` of a tensor file: crc32c of every 4 MiB block of every other entry. Its size follows from the
// other entries' names and sizes alone. Text, one line an entry:
//
//   dfm integrity 1 4194304
//   <data offset> <size> <crc32c of block 0, 8 hex digits> <of block 1> ... <entry's name>
//   end <crc32c of all bytes before this line>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dfm/formats/torch_zip.h"

namespace dfm::checkpoint {

inline constexpr std::uint64_t kBlockBytes = std::uint64_t{4} << 20;

using BlockSums = std::vector<std::uint32_t>;  // crc32c of each block of one entry

std::uint64_t num_blocks(std::uint64_t size);
std::uint64_t integrity_size(const std::vector<formats::ZipEntry>& entries);
std::string integrity_text(const std::vector<formats::ZipEntry>& entries, const std::vector<BlockSums>& sums);
// The number that tells this content from any other: that of the last line.
std::uint32_t integrity_id(std::string_view text);
// Sums by entry name. CheckpointError when the text is damaged or does not speak of exactly these entries.
std::map<std::string, BlockSums> parse_integrity(std::string_view text, const std::vector<formats::ZipEntry>& entries,
                                                 const std::string& file);

}  // namespace dfm::checkpoint
