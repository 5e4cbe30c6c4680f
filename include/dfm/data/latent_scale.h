#pragma once
// Between the latents of a data set (the encoder's own) and what the DiT sees: (z - mean) / std per channel and latent
// frame where the card has them, nothing else where not. (sigma_data = 0.5 is applied by diffusion.)
#include <ATen/core/Tensor.h>

#include "dfm/data/card.h"

namespace dfm::data {

class LatentScale {
 public:
  LatentScale() = default;  // the identity
  explicit LatentScale(const DatasetCard& card);
  [[nodiscard]] bool is_identity() const { return num_frames_ == 0; }
  // [C, t, h, w], any floating dtype and device; computed in float32, given in the dtype of the input. Latent frames
  // after the last that there are statistics of have the last one's.
  [[nodiscard]] at::Tensor normalise(const at::Tensor& latent_CTHW) const;
  [[nodiscard]] at::Tensor denormalise(const at::Tensor& latent_CTHW) const;

 private:
  std::int64_t num_frames_ = 0;
  at::Tensor mean_CT_, std_CT_;
};

}  // namespace dfm::data
