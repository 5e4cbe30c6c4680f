#include "dfm/data/latent_scale.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dfm/base/error.h"

namespace dfm::data {
namespace {

// [C, t, 1, 1] in float32 on the latent's device, for a latent of t frames.
at::Tensor statistics_for(const at::Tensor& values_CT, const at::Tensor& latent_CTHW) {
  const std::int64_t frames = latent_CTHW.size(1), known = values_CT.size(1);
  at::Tensor values = values_CT.narrow(1, 0, std::min(frames, known));
  if (frames > known) values = at::cat({values, values_CT.narrow(1, known - 1, 1).expand({-1, frames - known})}, 1);
  return values.unsqueeze(2).unsqueeze(3).to(latent_CTHW.device());
}

void check_shape(const at::Tensor& latent_CTHW, const at::Tensor& mean_CT) {
  if (latent_CTHW.dim() == 4 && latent_CTHW.size(0) == mean_CT.size(0)) return;
  throw InternalError("latent statistics: got a latent of {} dims and {} channels, want 4 and {}", latent_CTHW.dim(),
                      latent_CTHW.dim() > 0 ? latent_CTHW.size(0) : 0, mean_CT.size(0));
}

}  // namespace

LatentScale::LatentScale(const DatasetCard& card) : num_frames_(card.latent_statistics_frames) {
  if (num_frames_ == 0) return;
  const auto count = static_cast<std::size_t>(card.latent_channels * num_frames_);
  if (num_frames_ < 0 || card.latent_mean.size() != count || card.latent_std.size() != count) {
    throw InternalError("latent statistics: got {} means and {} deviations, want {}", card.latent_mean.size(),
                        card.latent_std.size(), count);
  }
  const auto table = [&](const std::vector<double>& values) {
    return at::tensor(values, at::kDouble).view({card.latent_channels, num_frames_}).to(at::kFloat);
  };
  mean_CT_ = table(card.latent_mean);
  std_CT_ = table(card.latent_std);
}

at::Tensor LatentScale::normalise(const at::Tensor& latent_CTHW) const {
  if (is_identity()) return latent_CTHW;
  check_shape(latent_CTHW, mean_CT_);
  const at::Tensor centred = latent_CTHW.to(at::kFloat) - statistics_for(mean_CT_, latent_CTHW);
  return (centred / statistics_for(std_CT_, latent_CTHW)).to(latent_CTHW.scalar_type());
}

at::Tensor LatentScale::denormalise(const at::Tensor& latent_CTHW) const {
  if (is_identity()) return latent_CTHW;
  check_shape(latent_CTHW, mean_CT_);
  const at::Tensor scaled = latent_CTHW.to(at::kFloat) * statistics_for(std_CT_, latent_CTHW);
  return (scaled + statistics_for(mean_CT_, latent_CTHW)).to(latent_CTHW.scalar_type());
}

}  // namespace dfm::data
