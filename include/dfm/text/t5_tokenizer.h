#pragma once
// T5's SentencePiece tokenisation: the ids of Hugging Face's T5TokenizerFast as google-t5's repositories set it up.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

namespace dfm::text {

class T5Tokenizer {
 public:
  static constexpr std::int32_t kPad = 0, kEnd = 1, kUnknown = 2;
  static constexpr std::size_t kMaxLength = 512;  // ids of a text, the end mark included

  // `model`: the file spiece.model or tokenizer.json, told apart by content. DataError when it is missing, damaged, or
  // does not have T5's special pieces.
  explicit T5Tokenizer(const std::filesystem::path& model);
  ~T5Tokenizer();
  T5Tokenizer(T5Tokenizer&&) noexcept;

  [[nodiscard]] std::int32_t vocabulary_size() const;  // every id is below it: 32,100 for T5, the extra ids included

  // The text's ids, cut to `max_length - 1`, then </s>. No beginning mark. An empty or blank text gives [1]. Special
  // tokens that stand in the text (</s>, <pad>, <unk>, <extra_id_0> to <extra_id_99>) become their ids, as in Hugging
  // Face's tokenizers. Bytes that are not UTF-8 count as U+FFFD. Thread safe.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, std::size_t max_length = kMaxLength) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::text
