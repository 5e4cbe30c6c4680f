#include "checkpoint/integrity.h"

#include <charconv>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"

namespace dfm::checkpoint {
namespace {

std::string header_line() { return fmt::format("dfm integrity 1 {}\n", kBlockBytes); }
std::string last_line(std::string_view before) { return fmt::format("end {:08x}\n", crc32c(as_bytes(before))); }

}  // namespace

std::uint64_t num_blocks(std::uint64_t size) { return (size + kBlockBytes - 1) / kBlockBytes; }

std::uint64_t integrity_size(const std::vector<formats::ZipEntry>& entries) {
  std::uint64_t size = header_line().size() + last_line("").size();
  for (const formats::ZipEntry& entry : entries) {
    size += fmt::formatted_size("{} {} {}\n", entry.data_offset, entry.size, entry.name) + 9 * num_blocks(entry.size);
  }
  return size;
}

std::string integrity_text(const std::vector<formats::ZipEntry>& entries, const std::vector<BlockSums>& sums) {
  std::string text = header_line();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    text += fmt::format("{} {}", entries[i].data_offset, entries[i].size);
    for (const std::uint32_t sum : sums[i]) text += fmt::format(" {:08x}", sum);
    text += " " + entries[i].name + "\n";
  }
  return text + last_line(text);
}

std::uint32_t integrity_id(std::string_view text) {
  return crc32c(as_bytes(text.substr(0, text.size() - std::min(text.size(), last_line("").size()))));
}

std::map<std::string, BlockSums> parse_integrity(std::string_view text, const std::vector<formats::ZipEntry>& entries,
                                                 const std::string& file) {
  const std::size_t end_size = last_line("").size();
  const std::string_view lines = text.substr(0, text.size() - std::min(text.size(), end_size));
  if (!lines.starts_with(header_line()) || text.substr(lines.size()) != last_line(lines)) {
    throw CheckpointError(
        "{}: entry integrity: got damaged content, want checksums that hold; hint: use another checkpoint", file);
  }
  std::map<std::string, BlockSums> result;
  std::string_view rest = lines.substr(header_line().size());
  for (const formats::ZipEntry& entry : entries) {
    const std::string head = fmt::format("{} {} ", entry.data_offset, entry.size);
    const std::string tail = entry.name + "\n";
    const std::uint64_t sums_size = 9 * num_blocks(entry.size);
    // What the sums speak of is what the zip's directory has, in the same order.
    const bool agrees = rest.size() >= head.size() + sums_size + tail.size() && rest.starts_with(head) &&
                        rest.substr(head.size() + sums_size).starts_with(tail);
    if (!agrees) {
      throw CheckpointError(
          "{}: entry {}: got a place, size or name that the checksums do not know; hint: the file is "
          "damaged, use another checkpoint",
          file, entry.name);
    }
    BlockSums& sums = result[entry.name];
    for (std::uint64_t i = 0; i < num_blocks(entry.size); ++i) {
      const char* digits = rest.data() + head.size() + 9 * i;
      std::uint32_t sum = 0;
      std::from_chars(digits, digits + 8, sum, 16);
      sums.push_back(sum);
    }
    rest.remove_prefix(head.size() + sums_size + tail.size());
  }
  if (!rest.empty()) {
    throw CheckpointError("{}: got fewer zip entries than checksums; hint: the file is damaged, use another checkpoint",
                          file);
  }
  return result;
}

}  // namespace dfm::checkpoint
