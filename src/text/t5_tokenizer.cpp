#include "dfm/text/t5_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <string>

#include "dfm/base/error.h"
#include "text/character_map.h"
#include "text/shared_flag.h"
#include "text/unigram_file.h"

namespace dfm::text {
namespace {

constexpr std::string_view kSpaceMark = "\u2581";  // stands for a space inside pieces

// The last character of valid UTF-8 that is not empty.
std::string_view last_character(std::string_view text) {
  std::size_t start = text.size() - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U) --start;
  return text.substr(start);
}

std::string_view trimmed_right(std::string_view text) {
  while (!text.empty() && is_white_space(front_code(last_character(text)))) {
    text.remove_suffix(last_character(text).size());
  }
  return text;
}

std::string_view trimmed_left(std::string_view text) {
  while (!text.empty() && is_white_space(front_code(text))) text.remove_prefix(front_bytes(text));
  return text;
}

}  // namespace

struct T5Tokenizer::State {
  UnigramFile file;
  CharacterMap characters;
  std::vector<SpecialToken> special_tokens;  // longest first
  sentencepiece::SentencePieceProcessor processor;
  std::int32_t vocabulary_size = 0;

  // The special token at the front of `text`, the longest; null: none.
  [[nodiscard]] const SpecialToken* special_at(std::string_view text) const {
    for (const SpecialToken& token : special_tokens) {
      if (text.starts_with(token.content)) return &token;
    }
    return nullptr;
  }

  // A word has its space mark in front, if it has one, and none inside: words cannot influence each other.
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
    std::vector<int> pieces;
    const auto status = processor.Encode({word.data(), word.size()}, &pieces);
    if (!status.ok()) throw DataError("caption: cannot be tokenised ({})", status.ToString());
    const auto literal_unknown = static_cast<int>(file.pieces.size());
    for (const int id : pieces) ids.push_back(id == literal_unknown ? kUnknown : id);
  }

  // Text without spaces, space marks instead: cut before each mark.
  void encode_marked(std::string_view text, std::vector<std::int32_t>& ids, std::size_t enough) const {
    while (!text.empty() && ids.size() < enough) {
      const std::string_view word = text.substr(0, text.find(kSpaceMark, 1));
      encode_word(word, ids);
      text.remove_prefix(word.size());
    }
  }

  void encode_spaced(std::string_view text, bool is_first, std::vector<std::int32_t>& ids, std::size_t enough) const {
    std::string marked;
    for (const char c : text) {
      if (c == ' ') {
        marked += kSpaceMark;
      } else {
        marked.push_back(c);
      }
    }
    using Prefix = UnigramFile::Prefix;
    const bool wants = file.prefix == Prefix::kAlways || (file.prefix == Prefix::kFirst && is_first);
    if (wants && !marked.starts_with(kSpaceMark)) marked.insert(0, kSpaceMark);
    encode_marked(marked, ids, enough);
  }

  // Text between special tokens.
  void encode_part(std::string_view text, bool is_first, std::vector<std::int32_t>& ids, std::size_t enough) const {
    std::string normal = characters.apply(text);
    if (file.trims_right) normal.resize(trimmed_right(normal).size());
    if (file.merges_spaces) {
      const auto both = [](char a, char b) { return a == ' ' && b == ' '; };
      normal.erase(std::unique(normal.begin(), normal.end(), both), normal.end());
    }
    if (normal.empty()) return;
    if (!file.splits_at_white_space) return encode_spaced(normal, is_first, ids, enough);
    for (std::string_view rest = trimmed_left(normal); !rest.empty(); rest = trimmed_left(rest)) {
      std::size_t size = 0;
      while (size < rest.size() && !is_white_space(front_code(rest.substr(size))))
        size += front_bytes(rest.substr(size));
      encode_spaced(rest.substr(0, size), is_first && rest.data() == normal.data(), ids, enough);
      rest.remove_prefix(size);
    }
  }
};

T5Tokenizer::T5Tokenizer(const std::filesystem::path& model) {
  if (shared_log_level() == nullptr) throw InternalError("t5 tokenizer: got no variable for the log level");
  UnigramFile file = read_unigram_file(model);
  CharacterMap characters(file.character_map, model.string());
  state_.reset(
      new State{.file = std::move(file), .characters = std::move(characters), .special_tokens = {}, .processor = {}});
  State& state = *state_;
  const auto status = state.processor.LoadFromSerializedProto(sentencepiece_model(state.file));
  if (!status.ok()) {
    throw DataError("{}: got a vocabulary of {} pieces that SentencePiece refuses, want T5's ({})", model.string(),
                    state.file.pieces.size(), status.ToString());
  }
  state.vocabulary_size = static_cast<std::int32_t>(state.file.pieces.size());
  state.special_tokens = state.file.special_tokens;
  std::stable_sort(state.special_tokens.begin(), state.special_tokens.end(),
                   [](const auto& a, const auto& b) { return a.content.size() > b.content.size(); });
  for (const SpecialToken& token : state.special_tokens)
    state.vocabulary_size = std::max(state.vocabulary_size, token.id + 1);
}

T5Tokenizer::~T5Tokenizer() = default;
T5Tokenizer::T5Tokenizer(T5Tokenizer&&) noexcept = default;

std::int32_t T5Tokenizer::vocabulary_size() const { return state_->vocabulary_size; }

std::vector<std::int32_t> T5Tokenizer::encode(std::string_view text, std::size_t max_length) const {
  const State& state = *state_;
  const std::string valid = valid_utf8(text);
  const std::string_view whole = valid;
  const std::size_t room = std::max<std::size_t>(max_length, 1) - 1;
  std::vector<std::int32_t> ids;
  std::size_t start = 0;  // of the text that waits for its end
  for (std::size_t i = 0; i <= whole.size() && ids.size() < room;) {
    const SpecialToken* token = i < whole.size() ? state.special_at(whole.substr(i)) : nullptr;
    if (token == nullptr && i < whole.size()) {
      ++i;
      continue;
    }
    std::string_view part = whole.substr(start, i - start);
    if (token != nullptr && token->strips_left) part = trimmed_right(part);
    state.encode_part(part, start == 0, ids, room);
    if (token == nullptr) break;
    ids.push_back(token->id);
    std::string_view rest = whole.substr(i + token->content.size());
    if (token->strips_right) rest = trimmed_left(rest);
    i = start = whole.size() - rest.size();
  }
  ids.resize(std::min(ids.size(), room));
  ids.push_back(kEnd);
  return ids;
}

}  // namespace dfm::text
