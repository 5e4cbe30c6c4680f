#pragma once
// Takes a projection apart into heads and normalises the query and key heads.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dfm::ops {

// x: [T, heads * parts * d], for each head its `parts` vectors of width d one after the other (q k v, or k v, or q).
// The first weights.size() parts get RMSNorm with weights [d], computed in float (double for double); the others are
// views of x. Returns `num_parts` tensors [T, heads, d]. Differentiable in x and the weights.
std::vector<at::Tensor> split_heads_norm(const at::Tensor& x_TC, std::int64_t num_heads, std::int64_t num_parts,
                                         const std::vector<at::Tensor>& weights_d, double eps);

}  // namespace dfm::ops
