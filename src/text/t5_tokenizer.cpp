#include "dfm/text/t5_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::text {

struct T5Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
};

T5Tokenizer::T5Tokenizer(const std::filesystem::path& model) : state_(std::make_unique<State>()) {
  const std::string bytes = read_text_file(model);
  const auto status = state_->processor.LoadFromSerializedProto(bytes);
  if (!status.ok()) {
    throw DataError("{}: got {} bytes that are not a SentencePiece model, want T5's spiece.model ({})", model.string(),
                    bytes.size(), status.ToString());
  }
  const auto& processor = state_->processor;
  if (processor.pad_id() != kPad || processor.eos_id() != kEnd || processor.unk_id() != kUnknown) {
    throw DataError("{}: got pad {}, end {}, unknown {}, want {}, {}, {} as T5 has", model.string(), processor.pad_id(),
                    processor.eos_id(), processor.unk_id(), kPad, kEnd, kUnknown);
  }
}

T5Tokenizer::~T5Tokenizer() = default;
T5Tokenizer::T5Tokenizer(T5Tokenizer&&) noexcept = default;

std::int32_t T5Tokenizer::vocabulary_size() const { return state_->processor.GetPieceSize(); }

std::vector<std::int32_t> T5Tokenizer::encode(std::string_view text, std::size_t max_length) const {
  std::vector<int> pieces;
  const auto status = state_->processor.Encode({text.data(), text.size()}, &pieces);
  if (!status.ok()) throw DataError("caption: cannot be tokenised ({})", status.ToString());
  const std::size_t room = std::max<std::size_t>(max_length, 1) - 1;
  pieces.resize(std::min(pieces.size(), room));
  std::vector<std::int32_t> ids(pieces.begin(), pieces.end());
  ids.push_back(kEnd);
  return ids;
}

}  // namespace dfm::text
