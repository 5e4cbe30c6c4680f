#include "dfm/models/patch.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "dfm/base/error.h"

namespace dfm::models {

at::Tensor patchify(const at::Tensor& latent_CTHW, std::int64_t patch_spatial, std::int64_t patch_temporal) {
  const std::int64_t p = patch_spatial, q = patch_temporal;
  if (latent_CTHW.dim() != 4 || latent_CTHW.size(1) % q != 0 || latent_CTHW.size(2) % p != 0 ||
      latent_CTHW.size(3) % p != 0) {
    throw DataError("latent: got {}, want channels x frames x height x width in multiples of {} x {} x {}",
                    fmt::join(latent_CTHW.sizes(), "x"), q, p, p);
  }
  const std::int64_t c = latent_CTHW.size(0), t = latent_CTHW.size(1) / q, h = latent_CTHW.size(2) / p,
                     w = latent_CTHW.size(3) / p;
  return latent_CTHW.reshape({c, t, q, h, p, w, p}).permute({1, 3, 5, 4, 6, 2, 0}).reshape({t * h * w, p * p * q * c});
}

at::Tensor unpatchify(const at::Tensor& tokens_SC, const LatentShape& shape, std::int64_t patch_spatial,
                      std::int64_t patch_temporal) {
  const std::int64_t p = patch_spatial, q = patch_temporal;
  const std::int64_t t = shape.frames / q, h = shape.height / p, w = shape.width / p;
  if (tokens_SC.dim() != 2 || tokens_SC.size(0) != t * h * w || tokens_SC.size(1) != p * p * q * shape.channels) {
    throw InternalError("tokens: got {}, want {} x {}", fmt::join(tokens_SC.sizes(), "x"), t * h * w,
                        p * p * q * shape.channels);
  }
  return tokens_SC.reshape({t, h, w, p, p, q, shape.channels})
      .permute({6, 0, 5, 1, 3, 2, 4})
      .reshape({shape.channels, shape.frames, shape.height, shape.width});
}

at::Tensor token_positions(const LatentShape& shape, std::int64_t patch_spatial, std::int64_t patch_temporal) {
  const std::int64_t t = shape.frames / patch_temporal, h = shape.height / patch_spatial,
                     w = shape.width / patch_spatial;
  const std::vector<at::Tensor> axes{at::arange(t, at::kLong), at::arange(h, at::kLong), at::arange(w, at::kLong)};
  std::vector<at::Tensor> columns;
  for (const at::Tensor& axis : at::meshgrid(axes, "ij")) columns.push_back(axis.reshape({-1}));
  return at::stack(columns, 1);
}

}  // namespace dfm::models
