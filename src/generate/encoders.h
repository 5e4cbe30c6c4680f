#pragma once
// The encoders of a run: those that the checkpoint's data set was made with, or others that give the same. And the
// texts of all prompts, encoded before the model is loaded.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/data/card.h"
#include "dfm/generate/options.h"
#include "dfm/models/encoders.h"

namespace dfm::generate {

// What was recorded beside the weights, and what is taken.
struct EncoderChoice {
  data::DatasetCard card;  // the builtin encoders' where there is none
  bool has_card = false;
  std::string where;  // the weights, for messages
  std::string tokenizer, text_encoder;
  bool is_own_tokenizer = false, is_own_text_encoder = false;  // named by the options
};
EncoderChoice choose_encoders(const GenerateOptions& options, const std::optional<data::DatasetCard>& card,
                              const std::string& where);

// An encoder that gives other latents, or other text rows, than those of the card is a ConfigError. The same facts
// under another name: a line to warn with, else "". Anything fits weights without a card.
std::string check_fits(const models::VideoTokenizer& tokenizer, const EncoderChoice& choice);
std::string check_fits(const models::TextEncoder& text_encoder, const EncoderChoice& choice);

// Downloads what the next two open. A failure of these says that the options can name another place, where the name is
// the checkpoint's.
void fetch_encoders(const EncoderChoice& choice, const GenerateOptions& options);
std::unique_ptr<models::VideoTokenizer> open_tokenizer(const EncoderChoice& choice, const GenerateOptions& options,
                                                       at::Device device);
std::unique_ptr<models::TextEncoder> open_text_encoder(const EncoderChoice& choice, const GenerateOptions& options,
                                                       at::Device device);

// One bfloat16 tensor [length, width] a text, as a prepared data set has it, on `device`. The first rank encodes, text
// by text: rows do not depend on the prompts beside them. `open` is called there only, once, and what it gives is
// destroyed before this returns. All ranks of the world call it with the same texts.
std::vector<at::Tensor> encode_texts(const std::vector<std::string>& texts, comm::World& world, at::Device device,
                                     const std::function<std::shared_ptr<models::TextEncoder>()>& open);

}  // namespace dfm::generate
