#include "dfm/parallel/linear.h"

#include <ATen/ATen.h>

#include "dfm/parallel/regions.h"

namespace dfm::parallel {
namespace {

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

}  // namespace

ColumnParallelLinear::ColumnParallelLinear(const Parallel& parallel, at::Tensor weight, at::Tensor bias)
    : parallel_(parallel), weight_(std::move(weight)), bias_(std::move(bias)) {}

at::Tensor ColumnParallelLinear::forward(const at::Tensor& x) const {
  return at::linear(enter_tensor_region(x, parallel_), weight_, if_defined(bias_));
}

RowParallelLinear::RowParallelLinear(const Parallel& parallel, at::Tensor weight, at::Tensor bias)
    : parallel_(parallel), weight_(std::move(weight)), bias_(std::move(bias)) {}

at::Tensor RowParallelLinear::forward(const at::Tensor& x) const {
  const at::Tensor y = leave_tensor_region(at::linear(x, weight_), parallel_);
  return bias_.defined() ? y + bias_ : y;
}

}  // namespace dfm::parallel
