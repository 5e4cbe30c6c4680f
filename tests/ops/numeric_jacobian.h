#pragma once
// Gradients against central differences in double: for operations with a backward of their own.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

namespace dfm::test {

using Inputs = std::vector<at::Tensor>;
using Operation = std::function<at::Tensor(const Inputs&)>;

inline at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype = at::kDouble, std::uint64_t seed = 1) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(sizes, generator, at::TensorOptions(at::kDouble)).to(dtype);
}

// Gradients of sum(op(inputs) * cotangent) with respect to all inputs.
inline Inputs gradients(const Operation& op, const Inputs& inputs, const at::Tensor& cotangent) {
  Inputs leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().clone().requires_grad_(true));
  return torch::autograd::grad({op(leaves)}, leaves, {cotangent});
}

// inputs in double. Every element of every input is moved.
inline void expect_gradients_match(const Operation& op, const Inputs& inputs, double tolerance = 1e-7) {
  const at::Tensor cotangent = random_tensor(op(inputs).sizes(), at::kDouble, 99);
  const Inputs found = gradients(op, inputs, cotangent);
  constexpr double kStep = 1e-5;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor numeric = at::zeros_like(inputs[i]).contiguous();
    for (std::int64_t element = 0; element < inputs[i].numel(); ++element) {
      const auto value_at = [&](double step) {
        Inputs moved = inputs;
        moved[i] = inputs[i].clone(at::MemoryFormat::Contiguous);
        moved[i].view({-1})[element] += step;
        return (op(moved) * cotangent).sum().item<double>();
      };
      numeric.view({-1})[element] = (value_at(kStep) - value_at(-kStep)) / (2 * kStep);
    }
    const double scale = std::max(1.0, numeric.abs().max().item<double>());
    EXPECT_LT((found[i] - numeric).abs().max().item<double>() / scale, tolerance) << "input " << i;
  }
}

}  // namespace dfm::test
