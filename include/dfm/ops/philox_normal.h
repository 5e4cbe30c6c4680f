#pragma once
// Philox normals straight into a tensor on its own device: the same integers on CPU and GPU, normals within 4 ulp
// (base/philox.h).
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dfm/base/philox.h"

namespace dfm::ops {

// Fills contiguous float32 `out` with the normals of elements [first, first + numel) of stream (seed, n, purpose).
void philox_normal_(at::Tensor& out, std::uint64_t seed, std::uint64_t n, Purpose purpose, std::uint64_t first = 0);

}  // namespace dfm::ops
