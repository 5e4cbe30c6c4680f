#pragma once
// The DiT's parameters by DFM's names: which there are, what they start as, and how files name them.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/models/dit/dit.h"

namespace dfm::models {

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  enum class Start { kNormal, kUniform, kZero, kOne } start;
  double scale = 0;  // standard deviation, or the bound of the uniform
  // As in parallel::Parameter. Heads lie in the rows of linear_qkv, linear_q and linear_kv one after the other, so a
  // block of rows is a block of heads.
  int split_dim = -1;
  int stage = 0;
  bool is_head_norm = false;  // one weight for all heads: a tensor rank sees its own
};
// In the order of DFM's state dict.
std::vector<ParameterSpec> dit_parameter_specs(const DitConfig& config);

// What a parameter starts as, whole.
at::Tensor initial_value(const ParameterSpec& spec, at::ScalarType dtype, at::Device device, std::uint64_t seed);

std::string layer_prefix(std::int64_t layer);  // "decoder.layers.3."

// Files' names to the model's: `module.` taken off, stacked layers taken apart, what DFM stores beside weights left
// out.
NamedTensors to_model_names(const NamedTensors& tensors);

}  // namespace dfm::models
