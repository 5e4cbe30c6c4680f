// make_tokenizer and make_text_encoder for encoders_peers.py:
//   encoders_tool tokenizer NAME FROM TO    clips of FROM (safetensors, uint8 or float [3, T, H, W]) -> TO:
//   latent.NAME,
//                                           pixels.NAME (decoded); facts as JSON on stdout
//   encoders_tool text NAME TO CAPTION...   rows.0, rows.1, ...
//   encoders_tool fetch NAME NAME           what the tokenizer and the text encoder need, into the cache
#include <ATen/ATen.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/weights.h"
#include "dfm/models/encoders.h"

namespace dfm {
namespace {

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

void run_tokenizer(const std::string& name, const std::string& from, const std::string& to) {
  const auto tokenizer = models::make_tokenizer(name, {});
  const auto clips = formats::Weights::open(from);
  Tensors results;
  for (const auto& entry : clips.entries()) {
    const at::Tensor pixels = clips.read(entry.name), latent = tokenizer->encode(pixels);
    results.emplace_back("latent." + entry.name, latent);
    results.emplace_back("batch." + entry.name, tokenizer->encode_batch(at::stack({pixels, pixels})));
    results.emplace_back("pixels." + entry.name, tokenizer->decode(latent));
  }
  formats::write_safetensors(to, results);
  const models::LatentStatistics statistics = tokenizer->latent_statistics();
  std::cout << nlohmann::json{{"name", tokenizer->name()},
                              {"channels", tokenizer->latent_channels()},
                              {"temporal", tokenizer->temporal_compression()},
                              {"spatial", tokenizer->spatial_compression()},
                              {"statistics", statistics.num_frames}}
                   .dump()
            << "\n";
}

void run_text(const std::string& name, const std::string& to, const std::vector<std::string>& captions) {
  const auto encoder = models::make_text_encoder(name, {});
  Tensors results;
  for (const at::Tensor& rows : encoder->encode(captions)) {
    results.emplace_back("rows." + std::to_string(results.size()), rows.to(at::kFloat));
  }
  formats::write_safetensors(to, results);
  std::cout << nlohmann::json{{"name", encoder->name()}, {"width", encoder->width()}}.dump() << "\n";
}

}  // namespace
}  // namespace dfm

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) return 64;
  try {
    if (arguments[0] == "tokenizer" && arguments.size() == 4) {
      dfm::run_tokenizer(arguments[1], arguments[2], arguments[3]);
    } else if (arguments[0] == "text" && arguments.size() > 3) {
      dfm::run_text(arguments[1], arguments[2], {arguments.begin() + 3, arguments.end()});
    } else if (arguments[0] == "fetch") {
      dfm::models::fetch_tokenizer(arguments[1], {});
      dfm::models::fetch_text_encoder(arguments[2], {});
    } else {
      return 64;
    }
    return 0;
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
