#pragma once
// T5's SentencePiece tokenisation: what Hugging Face's T5 tokenizers give for ordinary text.
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

  // `model`: the file spiece.model. DataError when it is missing, damaged, or does not have T5's control pieces.
  explicit T5Tokenizer(const std::filesystem::path& model);
  ~T5Tokenizer();
  T5Tokenizer(T5Tokenizer&&) noexcept;

  [[nodiscard]] std::int32_t vocabulary_size() const;  // pieces of the file; T5's 100 extra ids are not among them

  // The pieces' ids, cut to `max_length - 1`, then </s>. No beginning mark. An empty or blank text gives [1]. Text like
  // "</s>" is text: it becomes ordinary pieces. Thread safe.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, std::size_t max_length = kMaxLength) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::text
