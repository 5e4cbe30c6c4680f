#pragma once
// Where a tensor changes between "whole on every rank" and "this rank's part". Each is a forward and its backward; on a
// group of one both are the identity. All ranks of the group call them in the same order.
#include <ATen/core/Tensor.h>

#include <optional>

#include "dfm/ops/segments.h"
#include "dfm/parallel/parallel.h"

namespace dfm::parallel {

// Before a column layer: forward identity, backward sum over the tensor group.
at::Tensor enter_tensor_region(const at::Tensor& x, const Parallel& parallel);
// After a row layer: forward sum over the tensor group, backward identity.
at::Tensor leave_tensor_region(const at::Tensor& x, const Parallel& parallel);

// ops::packed_attention over rows split over the context group: each rank has its part of the queries and keys.
at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                             const ops::Segments& segments, const Parallel& parallel);

}  // namespace dfm::parallel
