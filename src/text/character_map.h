#pragma once
// The normalisation that a SentencePiece model carries (precompiled_charsmap: Unicode NFKC and more, as a double-array
// trie), applied as Hugging Face's `Precompiled` does. The two differ where several marks follow a letter:
// SentencePiece takes the longest match anywhere, Hugging Face looks up user-perceived characters of up to 5 bytes,
// else each code point.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dfm::text {

class CharacterMap {
 public:
  // `bytes`: precompiled_charsmap; empty: nothing is mapped. DataError, naming `name`, when it is damaged.
  CharacterMap(std::string_view bytes, const std::string& name);

  // Of UTF-8; bytes that are none are read as U+FFFD.
  [[nodiscard]] std::string apply(std::string_view text) const;

 private:
  [[nodiscard]] const char* find(std::string_view text) const;  // what the shortest matching prefix becomes; null: none
  void append(std::string_view text, std::string& result) const;

  std::vector<std::uint32_t> trie_;
  std::string replacements_;  // each ends in a 0 byte
};

// Valid UTF-8 from any bytes: U+FFFD for each that does not fit.
std::string valid_utf8(std::string_view text);
// The character at the front of valid UTF-8 that is not empty.
std::uint32_t front_code(std::string_view text);
std::size_t front_bytes(std::string_view text);
// Unicode's White_Space, what `\s` and trimming mean in Hugging Face's tokenizers.
bool is_white_space(std::uint32_t code);

}  // namespace dfm::text
