#pragma once
// The DiT as the denoiser that samplers want: EDM preconditioning around the network, one segment a call.
#include <ATen/core/Tensor.h>

#include "dfm/diffusion/sampler.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/patch.h"

namespace dfm::generate {

// Takes states [S, C] (tokens of one clip of `shape`) in float64 and gives the estimate in float64; the network gets
// and gives the dtype of its parameters. text_LE may have no rows: then cross-attention contributes exactly nothing.
// `dit` must outlive the denoiser.
diffusion::Denoiser dit_denoiser(const models::Dit& dit, const models::LatentShape& shape, const at::Tensor& text_LE,
                                 double fps);

}  // namespace dfm::generate
