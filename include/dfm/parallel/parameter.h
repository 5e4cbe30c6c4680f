#pragma once
// A parameter of a model over ranks.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dfm/parallel/parallel.h"

namespace dfm::parallel {

struct Parameter {
  std::string name;                 // global, the same on every rank
  at::Tensor tensor;                // this rank's part: the leaf that the model computes with
  std::vector<std::int64_t> shape;  // of the whole
  int split_dim = -1;               // dimension that is split over the tensor group; -1: replicated on it
  // The gradient that backward leaves in a replicated parameter is this rank's share of a sum over the tensor group
  // (each rank saw its own heads, or its own tokens); false: every tensor rank has the whole gradient.
  bool is_partial = false;
  int stage = 0;  // where it stands in forward: 0 before the first layer, i + 1 layer i, num_layers + 1 after the last
};

// This rank's part of a whole value, a view: an equal block along split_dim; all of it for -1.
inline at::Tensor part_of(const at::Tensor& whole, int split_dim, const Parallel& parallel) {
  if (split_dim < 0 || parallel.tensor->is_alone()) return whole;
  const std::int64_t length = whole.size(split_dim) / parallel.tensor->size();
  return whole.narrow(split_dim, parallel.tensor->rank() * length, length);
}

}  // namespace dfm::parallel
