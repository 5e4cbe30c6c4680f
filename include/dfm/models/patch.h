#pragma once
// Latents to tokens and back. Token order (t, h, w), channel order (ph, pw, pt, c), c fastest: DFM's.
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dfm::models {

struct LatentShape {
  std::int64_t channels = 16, frames = 1, height = 0, width = 0;  // of the latent, before patching
  [[nodiscard]] std::int64_t num_tokens(std::int64_t patch_spatial = 2, std::int64_t patch_temporal = 1) const {
    return frames / patch_temporal * (height / patch_spatial) * (width / patch_spatial);
  }
  bool operator==(const LatentShape&) const = default;
};

at::Tensor patchify(const at::Tensor& latent_CTHW, std::int64_t patch_spatial = 2,
                    std::int64_t patch_temporal = 1);  // [S, ph pw pt C]
at::Tensor unpatchify(const at::Tensor& tokens_SC, const LatentShape& shape, std::int64_t patch_spatial = 2,
                      std::int64_t patch_temporal = 1);
at::Tensor token_positions(const LatentShape& shape, std::int64_t patch_spatial = 2,
                           std::int64_t patch_temporal = 1);  // int64 [S, 3]

}  // namespace dfm::models
