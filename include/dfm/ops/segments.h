#pragma once
// A row of tokens [T, D] made of segments, one a sample. There is no batch dimension in dfm: packing is all there is.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dfm::ops {

// Where the segments lie: segment i is rows [offsets[i], offsets[i+1]). Rows from offsets.back() to T are padding:
// operations leave them finite and without influence. Both forms of the offsets are kept: the host's for planning, the
// device's for kernels.
struct Segments {
  std::vector<std::int64_t> offsets{0};  // num_segments() + 1 values, the first 0
  at::Tensor cu_seqlens;                 // int32 [num_segments() + 1] on the row's device
  std::int64_t max_length = 0;

  // lengths: one a segment, each >= 0.
  static Segments from_lengths(const std::vector<std::int64_t>& lengths, at::Device device = at::kCPU);

  [[nodiscard]] std::int64_t num_segments() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  [[nodiscard]] std::int64_t num_tokens() const { return offsets.back(); }
  [[nodiscard]] std::int64_t length(std::int64_t i) const {
    return offsets[static_cast<std::size_t>(i) + 1] - offsets[static_cast<std::size_t>(i)];
  }
};

}  // namespace dfm::ops
