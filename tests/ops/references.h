#pragma once
// The operations written as anybody would, for any dtype and device.
#include <ATen/ATen.h>

#include "dfm/ops/segments.h"

namespace dfm::test {

// [N, D] to [T, D] by the segment of each row; 0 for padding.
inline at::Tensor spread(const at::Tensor& values_ND, const ops::Segments& segments, std::int64_t num_rows) {
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    rows.push_back(values_ND.narrow(0, i, 1).expand({segments.length(i), values_ND.size(1)}));
  }
  return at::constant_pad_nd(at::cat(rows), {0, 0, 0, num_rows - segments.num_tokens()});
}

inline at::Tensor norm_modulate_reference(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                                          const ops::Segments& segments, double eps) {
  const std::int64_t tokens = segments.num_tokens();
  const at::Tensor normed = at::layer_norm(x, {x.size(1)}, {}, {}, eps).narrow(0, 0, tokens);
  const at::Tensor out = normed * (1 + spread(scale, segments, tokens)) + spread(shift, segments, tokens);
  return at::constant_pad_nd(out, {0, 0, 0, x.size(0) - tokens});
}

inline at::Tensor gate_residual_reference(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& branch,
                                          const ops::Segments& segments) {
  return x + spread(gate, segments, x.size(0)) * branch;
}

// Softmax attention of each segment, with zero rows written out up to total_keys (negative: none).
inline at::Tensor attention_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const ops::Segments& q_segments, const ops::Segments& kv_segments,
                                      std::int64_t total_keys) {
  std::vector<at::Tensor> outputs;
  for (std::int64_t i = 0; i < q_segments.num_segments(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::int64_t length = kv_segments.length(i), more = total_keys < 0 ? 0 : total_keys - length;
    const auto keys_of = [&](const at::Tensor& x) {
      return at::constant_pad_nd(x.narrow(0, kv_segments.offsets[at], length), {0, 0, 0, 0, 0, more}).transpose(0, 1);
    };
    const at::Tensor query = q.narrow(0, q_segments.offsets[at], q_segments.length(i)).transpose(0, 1);
    const at::Tensor scores = at::matmul(query, keys_of(k).transpose(1, 2)) / std::sqrt(static_cast<double>(q.size(2)));
    outputs.push_back(at::matmul(scores.softmax(-1), keys_of(v)).transpose(0, 1));
  }
  return at::constant_pad_nd(at::cat(outputs), {0, 0, 0, 0, 0, q.size(0) - q_segments.num_tokens()});
}

}  // namespace dfm::test
