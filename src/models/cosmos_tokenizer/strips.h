#pragma once
// What the convolutional layers share.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "models/cosmos_tokenizer/layers.h"

namespace dfm::models::cosmos {

inline constexpr double kNormEps = 1e-6;

// weight: [out, in, kh, kw], channels last. Into `out`, if there is one, which must be a run of memory; no bias.
at::Tensor convolve(const at::Tensor& x_FHWC, const at::Tensor& weight, std::array<std::int64_t, 2> stride,
                    std::array<std::int64_t, 2> padding, const at::Tensor& out_FHWC = {});

// Rows of a strip when a row of what is made takes `row_bytes`; all of them when that fits.
std::int64_t strip_rows(const Stream& stream, std::int64_t row_bytes, std::int64_t rows);

}  // namespace dfm::models::cosmos
