#pragma once
// Exact softmax attention inside the segments of packed rows. Legend: T query rows, L key rows, H heads, d head size.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "dfm/ops/segments.h"

namespace dfm::ops {

// Segment i of the queries attends to segment i of the keys, scale d^-0.5; q, k, v need only their last dimension
// dense. Differentiable in q, k and v. Rows of padding give 0.
//
// total_keys (optional): as if each key segment had zero rows after its own up to this many. A zero row has score 0 and
// value 0, so all of them together are one key of weight total_keys - length, which is exact and costs nothing. A
// segment without keys then gives 0. Without total_keys every segment with queries must have a key.
at::Tensor packed_attention(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                            const Segments& q_segments, const Segments& kv_segments,
                            std::optional<std::int64_t> total_keys = std::nullopt);

// The two halves of packed_attention for those who merge parts of a softmax themselves (context parallelism). No
// autograd. A segment may have queries without keys: its rows are then out 0, lse -inf.
struct AttentionPart {
  at::Tensor out_THd;  // dtype of q; padding rows 0
  at::Tensor lse_HT;   // float32 (float64 for float64): log of the softmax's denominator; padding rows -inf
};
AttentionPart packed_attention_forward(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                                       const Segments& q_segments, const Segments& kv_segments);
// Gradients of this part, given the output and the lse of the whole softmax: their sum over parts is that of the whole.
struct AttentionGradients {
  at::Tensor q_THd, k_LHd, v_LHd;  // dtypes of q, k, v
};
AttentionGradients packed_attention_backward(const at::Tensor& grad_THd, const at::Tensor& q_THd,
                                             const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                                             const at::Tensor& out_THd, const at::Tensor& lse_HT,
                                             const Segments& q_segments, const Segments& kv_segments);

}  // namespace dfm::ops
