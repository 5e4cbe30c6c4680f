#include "dfm/models/encoders.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/formats/weights.h"
#include "models/builtin/dct_tokenizer.h"
#include "models/builtin/hashed_text.h"
#include "models/cosmos_tokenizer/cosmos_tokenizer.h"
#include "models/cosmos_tokenizer/jit_tokenizer.h"
#include "models/encoder_files.h"
#include "models/t5/t5_encoder.h"

namespace dfm::models {
namespace {

constexpr const char* kBuiltin = "builtin";

std::unique_ptr<VideoTokenizer> open_tokenizer(const CosmosFiles& files, const EncoderOptions& options) {
  if (files.encoder_jit.empty()) return open_cosmos(files, options);
  try {
    return open_cosmos(files, options);
  } catch (const DataError& misfit) {
    auto tokenizer = open_jit_tokenizer(files, options);
    log::warning("models", "tokenizer {}: runs as TorchScript, without streaming over time: {}", files.name,
                 misfit.what());
    return tokenizer;
  }
}

}  // namespace

at::Tensor VideoTokenizer::encode_batch(const at::Tensor& pixels_NCTHW) const {
  std::vector<at::Tensor> latents;
  for (const at::Tensor& pixels_CTHW : pixels_NCTHW.unbind(0)) latents.push_back(encode(pixels_CTHW));
  return at::stack(latents);
}

void VideoTokenizer::decode_frames(const at::Tensor& latent_CTHW,
                                   const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const {
  on_frames(decode(latent_CTHW));
}

std::unique_ptr<VideoTokenizer> make_tokenizer(const std::string& name, const EncoderOptions& options) {
  if (name == kBuiltin) return std::make_unique<DctTokenizer>(options.device);
  return open_tokenizer(find_tokenizer(place_of(name, "tokenizer"), options.hub_cache), options);
}

std::unique_ptr<TextEncoder> make_text_encoder(const std::string& name, const EncoderOptions& options) {
  if (name == kBuiltin) return std::make_unique<HashedTextEncoder>(options.device);
  const TextEncoderFiles files = find_text_encoder(place_of(name, "text_encoder"), options.hub_cache);
  return open_t5({files.config, files.tokenizer, formats::Weights::open(files.weights), files.name}, options);
}

void fetch_tokenizer(const std::string& name, const std::filesystem::path& hub_cache) {
  if (name == kBuiltin) return;
  const EncoderPlace place = place_of(name, "tokenizer");
  if (place.path.empty()) find_tokenizer(place, hub_cache);
}

void fetch_text_encoder(const std::string& name, const std::filesystem::path& hub_cache) {
  if (name == kBuiltin) return;
  const EncoderPlace place = place_of(name, "text_encoder");
  if (place.path.empty()) find_text_encoder(place, hub_cache);
}

}  // namespace dfm::models
