#include "text/character_map.h"

#include <algorithm>
#include <span>

#include "dfm/base/error.h"
#include "text/grapheme_table.h"

namespace dfm::text {
namespace {

constexpr std::size_t kLookedUpTogether = 5;  // bytes

bool is_in(std::span<const CodeRange> ranges, std::uint32_t code) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                      [](std::uint32_t c, const CodeRange& range) { return c < range.first; });
  return after != ranges.begin() && code <= std::prev(after)->last;
}

// Length of the sequence at the front if it is valid UTF-8, else 0.
std::size_t valid_front(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t num_bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < num_bytes) return 0;
  for (std::size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return 0;
  }
  const std::uint32_t code = front_code(text);
  const bool overlong = (num_bytes == 3 && code < 0x800) || (num_bytes == 4 && code < 0x10000);
  return overlong || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF) ? 0 : num_bytes;
}

// Bytes of the user-perceived character (grapheme cluster) at the front. Clusters that Unicode makes of Hangul, flags
// and emoji sequences are longer than kLookedUpTogether whatever their parts: they need no rule here.
std::size_t cluster_bytes(std::string_view text) {
  if (text.starts_with("\r\n")) return 2;
  std::size_t size = front_bytes(text);
  std::uint32_t code = front_code(text);
  if (is_in(kStandsAlone, code)) return size;
  const auto next = [&](std::span<const CodeRange> joining) {
    return size < text.size() && is_in(joining, front_code(text.substr(size)));
  };
  while (is_in(kJoinsAfter, code) && size < text.size() && !next(kStandsAlone)) {
    code = front_code(text.substr(size));
    size += front_bytes(text.substr(size));
  }
  while (next(kJoinsBefore)) size += front_bytes(text.substr(size));
  return size;
}

}  // namespace

std::uint32_t front_code(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::size_t size = front_bytes(text);
  if (size == 1) return byte(0);
  std::uint32_t code = byte(0) & (0x7FU >> size);
  for (std::size_t i = 1; i < size; ++i) code = code << 6 | (byte(i) & 0x3FU);
  return code;
}

std::size_t front_bytes(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  return first < 0x80 ? 1 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
}

bool is_white_space(std::uint32_t code) {
  return (code >= 0x9 && code <= 0xD) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

std::string valid_utf8(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const std::size_t size = valid_front(text);
    result += size > 0 ? text.substr(0, size) : std::string_view("\xEF\xBF\xBD");
    text.remove_prefix(std::max<std::size_t>(size, 1));
  }
  return result;
}

CharacterMap::CharacterMap(std::string_view bytes, const std::string& name) {
  if (bytes.empty()) return;
  const auto word = [&](std::size_t i) {
    std::uint32_t value = 0;
    for (std::size_t b = 0; b < 4; ++b) value |= std::uint32_t{static_cast<unsigned char>(bytes[4 * i + b])} << (8 * b);
    return value;
  };
  const std::size_t trie_bytes = bytes.size() >= 4 ? word(0) : 0;
  if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > bytes.size() - 4) {
    throw DataError("{}: got a character map of {} bytes that is damaged, want SentencePiece's precompiled_charsmap",
                    name, bytes.size());
  }
  for (std::size_t i = 1; i <= trie_bytes / 4; ++i) trie_.push_back(word(i));
  replacements_ = bytes.substr(4 + trie_bytes);
}

// A unit of the trie: bits 0-7 and 31 label, bit 8 whether a value hangs here, bits 10-30 offset, bit 9 its scale.
const char* CharacterMap::find(std::string_view text) const {
  if (trie_.empty()) return nullptr;
  const auto offset = [](std::uint32_t unit) -> std::size_t { return (unit >> 10) << ((unit & 0x200U) >> 6); };
  std::size_t position = offset(trie_[0]);
  for (const char c : text) {
    const auto label = static_cast<unsigned char>(c);
    if (label == 0) return nullptr;
    position ^= label;
    if (position >= trie_.size()) return nullptr;
    const std::uint32_t unit = trie_[position];
    if ((unit & 0x800000FFU) != label) return nullptr;
    position ^= offset(unit);
    if (position >= trie_.size()) return nullptr;
    if ((unit & 0x100U) == 0) continue;
    const std::size_t value = trie_[position] & 0x7FFFFFFFU;
    return value < replacements_.size() ? replacements_.c_str() + value : nullptr;
  }
  return nullptr;
}

void CharacterMap::append(std::string_view text, std::string& result) const {
  if (const char* replacement = find(text)) {
    result += replacement;
  } else {
    result += text;
  }
}

std::string CharacterMap::apply(std::string_view text) const {
  const std::string valid = valid_utf8(text);
  std::string result;
  for (std::string_view rest = valid; !rest.empty();) {
    const std::string_view cluster = rest.substr(0, cluster_bytes(rest));
    rest.remove_prefix(cluster.size());
    if (cluster.size() <= kLookedUpTogether) {
      if (const char* replacement = find(cluster)) {
        result += replacement;
        continue;
      }
    }
    for (std::string_view left = cluster; !left.empty(); left.remove_prefix(front_bytes(left))) {
      append(left.substr(0, front_bytes(left)), result);
    }
  }
  return result;
}

}  // namespace dfm::text
