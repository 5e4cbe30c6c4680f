#pragma once
// The adaLN operations of a DiT block on a packed row. Legend: T tokens of the row (padding included), N segments, D
// width. Differentiable in every tensor. Dtypes of all tensors of a call are equal: float, double or bfloat16 (with
// statistics and sums in float). Modulation tensors may be views with any distance between rows. Padding rows: results
// and gradients 0.
#include <ATen/core/Tensor.h>

#include "dfm/ops/segments.h"

namespace dfm::ops {

// LayerNorm without affine, then * (1 + scale) + shift with the values of the token's segment.
at::Tensor norm_modulate(const at::Tensor& x_TD, const at::Tensor& shift_ND, const at::Tensor& scale_ND,
                         const Segments& segments, double eps);

// x + gate * branch with the gate of the token's segment. Padding rows of x pass through.
at::Tensor gate_residual(const at::Tensor& x_TD, const at::Tensor& gate_ND, const at::Tensor& branch_TD,
                         const Segments& segments);

}  // namespace dfm::ops
