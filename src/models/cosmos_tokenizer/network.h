#pragma once
// The two halves of the network, over pieces of clips.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/cosmos_tokenizer/layers.h"
#include "models/cosmos_tokenizer/patcher.h"

namespace dfm::models::cosmos {

// What comes out of a level besides its sampler.
struct Block {
  ResBlock residual;
  std::vector<Attention> attention;  // none, or spatial then temporal
};

class Middle {
 public:
  Middle(WeightReader& reader, const std::string& name, std::int64_t channels);
  [[nodiscard]] at::Tensor operator()(Stream& stream, at::Tensor x) const;

 private:
  ResBlock first_;
  Attention spatial_, temporal_;
  ResBlock second_;
};

// Norm, SiLU and the last pair.
class Head {
 public:
  Head(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out);
  [[nodiscard]] at::Tensor operator()(Stream& stream, const at::Tensor& x) const;

 private:
  FrameNorm norm_;
  ConvPair conv_;
};

struct Placement {
  at::Device device;
  at::ScalarType dtype;
  std::string where;                 // of the files, for messages
  TensorShapes* requests = nullptr;  // receives what the network asks for, in place of a check of what it got
};

// Names (diffusers') and shapes of all the tensors of a network.
TensorShapes tensor_shapes(const Config& config);

// Pieces: the first of 1 + n k pixel frames, n >= 0, all others of n k, n >= 1 (k: temporal compression).
class Encoder {
 public:
  Encoder(const Config& config, const NamedTensors& tensors, const Placement& placement);
  [[nodiscard]] Stream start() const;
  // [N, 3, T, H, W] to float [N, C, t, h, w].
  [[nodiscard]] at::Tensor operator()(Stream& stream, const at::Tensor& pixels_NCTHW) const;

 private:
  struct Stage {
    std::vector<Block> blocks;
    std::optional<Downsample> sampler;
  };
  Encoder(const Config& config, WeightReader reader, const Placement& placement);
  Patcher patcher_;
  ConvPair conv_in_;
  std::vector<Stage> stages_;
  Middle middle_;
  Head head_;
  Pointwise quant_;
  at::ScalarType dtype_;
  std::int64_t num_slots_;
};

// Pieces: any number of latent frames.
class Decoder {
 public:
  Decoder(const Config& config, const NamedTensors& tensors, const Placement& placement);
  [[nodiscard]] Stream start() const;
  // [1, C, t, h, w] to float [1, 3, T, H, W].
  [[nodiscard]] at::Tensor operator()(Stream& stream, const at::Tensor& latent_NCTHW) const;

 private:
  struct Stage {
    std::vector<Block> blocks;
    std::optional<Upsample> sampler;
  };
  Decoder(const Config& config, WeightReader reader, const Placement& placement);
  Patcher patcher_;
  Pointwise post_quant_;
  ConvPair conv_in_;
  Middle middle_;
  std::vector<Stage> stages_;
  Head head_;
  at::ScalarType dtype_;
  std::int64_t num_slots_;
};

}  // namespace dfm::models::cosmos
