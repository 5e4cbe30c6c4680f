#pragma once
// Linear layers whose weight is split over the tensor group: column (output features), then row (input features), with
// one sum over the group after the row layer. Each holds its own slice.
//
//   ColumnParallelLinear fc1(parallel, fc1_weight);
//   RowParallelLinear fc2(parallel, fc2_weight);
//   y = fc2.forward(at::gelu(fc1.forward(x)));   // x and y: this rank's tokens between the matrices
#include <ATen/core/Tensor.h>

#include "dfm/parallel/parallel.h"

namespace dfm::parallel {

class ColumnParallelLinear {
 public:
  // weight: this rank's [out / size, in].
  ColumnParallelLinear(const Parallel& parallel, at::Tensor weight);
  // x: this rank's tokens between the matrices. Result: the context rank's tokens, this rank's features.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;
  // x: whole on every tensor rank even with sequence parallelism.
  [[nodiscard]] at::Tensor forward_whole(const at::Tensor& x) const;

 private:
  Parallel parallel_;
  at::Tensor weight_;
};

class RowParallelLinear {
 public:
  // weight: this rank's [out, in / size].
  RowParallelLinear(const Parallel& parallel, at::Tensor weight);
  // x: the context rank's tokens, this rank's features. Result: this rank's tokens between the matrices, whole width.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x) const;

 private:
  Parallel parallel_;
  at::Tensor weight_;
};

}  // namespace dfm::parallel
