#pragma once
// Linear layers whose weight is split over the tensor group: column (output features), then row (input features), with
// one sum over the group after the row layer. Each holds its own slice.
//
//   ColumnParallelLinear fc1(parallel, fc1_weight, {});
//   RowParallelLinear fc2(parallel, fc2_weight, {});
//   y = fc2.forward(at::gelu(fc1.forward(x)));   // x and y whole on every rank of the group
#include <ATen/core/Tensor.h>

#include "dfm/parallel/parallel.h"

namespace dfm::parallel {

class ColumnParallelLinear {
 public:
  // weight: this rank's [out / size, in]; bias: undefined, or this rank's [out / size].
  ColumnParallelLinear(const Parallel& parallel, at::Tensor weight, at::Tensor bias);
  // x: whole. Result: this rank's features.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;

 private:
  Parallel parallel_;
  at::Tensor weight_, bias_;
};

class RowParallelLinear {
 public:
  // weight: this rank's [out, in / size]; bias: undefined, or the whole [out], added once after the sum.
  RowParallelLinear(const Parallel& parallel, at::Tensor weight, at::Tensor bias);
  // x: this rank's features. Result: whole.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;

 private:
  Parallel parallel_;
  at::Tensor weight_, bias_;
};

}  // namespace dfm::parallel
