#pragma once
// GroupNorm with one group over each frame of a picture or clip, taken apart: moments of whole frames first, then the
// normalisation of any rows of them, so that a network can work strip by strip. No gradients. Computed in float
// whatever the type; channels are last.
#include <ATen/core/Tensor.h>

namespace dfm::ops {

struct FrameMoments {
  at::Tensor mean_F, rstd_F;  // float
};
// x + bias of [F, H, W, C] (bias [C] of float, or undefined), per frame over H, W and C; rstd = 1 / sqrt(var + eps).
FrameMoments frame_moments(const at::Tensor& x_FHWC, const at::Tensor& bias_C, double eps);

// ((x + bias - mean) * rstd) * weight + shift, then SiLU if asked, of rows of the frames the moments are of: x may be
// cut from a larger tensor along H. weight, shift and bias are float [C]. Contiguous, of x's type.
at::Tensor frame_normalise(const at::Tensor& x_FHWC, const FrameMoments& moments, const at::Tensor& weight_C,
                           const at::Tensor& shift_C, const at::Tensor& bias_C, bool silu);

// target += y + bias, in place; target may be cut from a larger tensor along H, y is contiguous or so cut, too.
void add_with_bias(const at::Tensor& target_FHWC, const at::Tensor& y_FHWC, const at::Tensor& bias_C);

}  // namespace dfm::ops
