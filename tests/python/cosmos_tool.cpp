// The Cosmos tokenizer for cosmos_matches_diffusers.py:
//   cosmos_tool FOLDER INPUT.safetensors OUTPUT.safetensors
// FOLDER holds config.json and diffusion_pytorch_model.safetensors, or model.safetensors, or encoder.jit and
// decoder.jit. Tensors `pixels.X` of the input are encoded, `latent.X` decoded, whole and in pieces of one latent
// frame.
#include <ATen/ATen.h>

#include <cstdio>
#include <filesystem>

#include "dfm/base/error.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/weights.h"
#include "models/cosmos_tokenizer/cosmos_tokenizer.h"
#include "models/cosmos_tokenizer/tokenizer.h"

namespace {

namespace fs = std::filesystem;

int run(const fs::path& folder, const fs::path& input, const fs::path& output) {
  dfm::models::CosmosFiles files;
  files.name = folder.filename().string();
  const auto take = [&](const char* name, fs::path& path) {
    if (path.empty() && fs::exists(folder / name)) path = folder / name;
  };
  take("config.json", files.config);
  take("diffusion_pytorch_model.safetensors", files.weights);
  take("model.safetensors", files.weights);
  take("encoder.jit", files.encoder_jit);
  take("decoder.jit", files.decoder_jit);
  take("mean_std.pt", files.mean_std);
  const auto tokenizer = dfm::models::open_cosmos(files, {});
  auto& native = dynamic_cast<dfm::models::cosmos::Tokenizer&>(*tokenizer);
  const auto inputs = dfm::formats::Weights::open(input);
  std::vector<std::pair<std::string, at::Tensor>> outputs;
  for (const auto& entry : inputs.entries()) {
    const at::Tensor x = inputs.read(entry.name);
    for (const std::int64_t frames : {100, 1}) {
      native.set_cuts({.latent_frames = frames});
      const std::string name = (frames == 1 ? "pieces." : "whole.") + entry.name;
      outputs.emplace_back(name, entry.name.starts_with("pixels") ? tokenizer->encode(x) : tokenizer->decode(x));
    }
  }
  const auto statistics = tokenizer->latent_statistics();
  for (const auto& [name, values] : {std::pair{"mean", statistics.mean}, std::pair{"std", statistics.std}}) {
    if (!values.empty()) outputs.emplace_back(name, at::tensor(values));
  }
  dfm::formats::write_safetensors(output, outputs);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 64;
  try {
    return run(argv[1], argv[2], argv[3]);
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
