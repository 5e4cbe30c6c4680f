#pragma once
// A Unigram vocabulary with T5's rules, from spiece.model or tokenizer.json.
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace dfm::text {

struct SpecialToken {
  std::string content;
  std::int32_t id = 0;
  bool strips_left = false, strips_right = false;  // white space beside it in the text
};

struct UnigramFile {
  std::vector<std::pair<std::string, float>> pieces;  // id, score; what stands for special tokens included
  std::string character_map;                          // precompiled_charsmap
  std::vector<SpecialToken> special_tokens;           // matched in the text before anything else
  enum class Prefix { kAlways, kFirst, kNever } prefix = Prefix::kAlways;  // of a space, before text that has none
  bool splits_at_white_space = false;                                      // drops it; otherwise only spaces part words
  bool trims_right = true, merges_spaces = true;
};

// DataError: missing, damaged, or not what a T5 has.
UnigramFile read_unigram_file(const std::filesystem::path& path);

// The same vocabulary as a serialised SentencePiece model that normalises nothing. Ids are the pieces' places; one more
// piece at the end is the text "<unk>", whose id stands for kUnknown.
std::string sentencepiece_model(const UnigramFile& file);

}  // namespace dfm::text
