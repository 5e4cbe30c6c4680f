#include "dfm/text/words.h"

#include <cstddef>
#include <cstdint>

namespace dfm::text {
namespace {

struct Character {
  std::uint32_t code = 0;
  std::size_t num_bytes = 1;
  bool valid = false;
};

// The character at the front of `text`, which is not empty. Overlong forms, surrogates and cut sequences are not valid
// and count as one byte.
Character decode_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {first, 1, true};
  const std::size_t num_bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < num_bytes) return {};
  std::uint32_t code = first & (0x7FU >> num_bytes);
  for (std::size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xC0U) != 0x80U) return {};
    code = code << 6 | (byte(i) & 0x3FU);
  }
  const std::uint32_t smallest = num_bytes == 4 ? 0x10000 : num_bytes == 3 ? 0x800 : 0x80;
  if (code < smallest || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, num_bytes, true};
}

bool is_word_character(std::uint32_t code) {
  if (code < 0x80) return (code >= '0' && code <= '9') || (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z');
  const auto within = [code](std::uint32_t first, std::uint32_t last) { return code >= first && code <= last; };
  const bool latin1_letter = code == 0xAA || code == 0xB5 || code == 0xBA;
  if (within(0x80, 0xBF)) return latin1_letter;
  return code != 0xD7 && code != 0xF7 &&  // times, division
         !within(0x2000, 0x206F) &&       // general punctuation and spaces
         !within(0x3000, 0x3003) && !within(0x3008, 0x3020) && !within(0x3030, 0x3030) && !within(0xFF01, 0xFF0F) &&
         !within(0xFF1A, 0xFF20) && !within(0xFF3B, 0xFF40) && !within(0xFF5B, 0xFF65) && code != 0x1680 &&
         code != 0xFEFF;
}

}  // namespace

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  while (!text.empty()) {
    const Character character = decode_utf8(text);
    if (character.valid && is_word_character(character.code)) {
      if (!inside) words.emplace_back();
      inside = true;
      if (character.code >= 'A' && character.code <= 'Z') {
        words.back().push_back(static_cast<char>(character.code - 'A' + 'a'));
      } else {
        words.back().append(text.substr(0, character.num_bytes));
      }
    } else {
      inside = false;
    }
    text.remove_prefix(character.num_bytes);
  }
  return words;
}

}  // namespace dfm::text
