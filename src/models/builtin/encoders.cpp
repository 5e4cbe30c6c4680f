#include "dfm/models/encoders.h"

#include "dfm/base/error.h"
#include "models/builtin/dct_tokenizer.h"
#include "models/builtin/hashed_text.h"

namespace dfm::models {

std::unique_ptr<VideoTokenizer> make_tokenizer(const std::string& name, at::Device device) {
  if (name == "builtin") return std::make_unique<DctTokenizer>(device);
  throw ConfigError(
      "tokenizer: got {}, want builtin (this version loads no other); hint: prepare the data with --tokenizer builtin, "
      "which needs no download",
      name);
}

std::unique_ptr<TextEncoder> make_text_encoder(const std::string& name, at::Device device) {
  if (name == "builtin") return std::make_unique<HashedTextEncoder>(device);
  throw ConfigError(
      "text_encoder: got {}, want builtin (this version loads no other); hint: prepare the data with --text-encoder "
      "builtin, which needs no download",
      name);
}

}  // namespace dfm::models
