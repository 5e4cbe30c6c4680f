#pragma once
// The DiT as the denoiser that samplers want: EDM preconditioning around the network, one clip a call; and the clip as
// a whole, its tokens over the model's context group. Legend: S tokens of the clip that this rank has (none of another,
// no padding), C channels of a token, L text rows, E text width.
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dfm/comm/group.h"
#include "dfm/diffusion/sampler.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/patch.h"

namespace dfm::generate {

// Takes states [S, C] in float64 and gives the estimate in float64; the network gets and gives the dtype of its
// parameters. text_LE may have no rows: then cross-attention contributes exactly nothing. `dit` must outlive the
// denoiser.
diffusion::Denoiser dit_denoiser(const models::Dit& dit, const models::LatentShape& shape, const at::Tensor& text_LE,
                                 double fps);

struct Clip {
  models::LatentShape shape;
  at::Tensor text_LE, negative_text_LE;
  double fps = 0;
  double guidance = 0;
  std::uint64_t seed = 0;
  std::uint64_t index = 0;  // of the prompt: with the seed it keys the noise
};

// Samples the clip and gives its latent [C, T, H, W] in float64, the same on all ranks that make it. branches: this
// rank alone, or two that share the branches of guidance: the first computes the conditional one, the second the
// unconditional one.
at::Tensor sample_clip(const models::Dit& dit, const Clip& clip, const comm::GroupPtr& branches,
                       const diffusion::SampleOptions& options);

}  // namespace dfm::generate
