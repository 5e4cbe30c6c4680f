#include "models/cosmos_tokenizer/random_weights.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

namespace dfm::models::cosmos {

NamedTensors random_weights(const Config& config, std::uint64_t seed, bool native) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto num_levels = static_cast<std::int64_t>(config.encoder_widths.size()) - 1;
  NamedTensors tensors;
  for (const auto& [name, shape] : tensor_shapes(config)) {
    at::Tensor tensor = at::randn(shape, generator, at::kFloat);
    if (shape.size() == 5) {
      tensor.div_(std::sqrt(static_cast<double>(shape[1] * shape[2] * shape[3] * shape[4])));
    } else {
      tensor.mul_(0.1);
      if (name.ends_with("norm.weight")) tensor.add_(1);
    }
    tensors.emplace(native ? native_name(name, num_levels) : name, tensor);
  }
  return tensors;
}

}  // namespace dfm::models::cosmos
