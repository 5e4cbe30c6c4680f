#include "dfm/ops/segments.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"

namespace dfm::ops {

Segments Segments::from_lengths(const std::vector<std::int64_t>& lengths, at::Device device) {
  Segments segments;
  segments.offsets.reserve(lengths.size() + 1);
  for (const std::int64_t length : lengths) {
    if (length < 0) throw InternalError("segment {}: got length {}, want >= 0", segments.num_segments(), length);
    segments.offsets.push_back(segments.offsets.back() + length);
    segments.max_length = std::max(segments.max_length, length);
  }
  segments.cu_seqlens = at::tensor(segments.offsets, at::kLong).to(at::kInt).to(device);
  return segments;
}

}  // namespace dfm::ops
