#include "models/builtin/channel_statistics.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

namespace dfm::models {

void ChannelStatistics::Moments::add(const at::Tensor& latent_CTHW, const ChannelScales& scales) {
  const at::Tensor flat = latent_CTHW.flatten(1).to(at::kDouble).cpu();
  const at::Tensor sums = flat.sum(1), squares = flat.square().sum(1);
  count += static_cast<double>(flat.size(1));
  for (std::size_t i = 0; i < scales.size(); ++i) {
    const auto c = static_cast<std::int64_t>(i);
    sum[i] += scales[i] * sums[c].item<double>();
    sum_squares[i] += scales[i] * scales[i] * squares[c].item<double>();
  }
}

std::optional<ChannelStatistics::Deviations> ChannelStatistics::Moments::deviations() const {
  if (count == 0) return std::nullopt;
  Deviations result{};
  for (std::size_t i = 0; i < result.size(); ++i) {
    const double mean = sum[i] / count;
    result[i] = std::sqrt(std::max(0.0, sum_squares[i] / count - mean * mean));
  }
  return result;
}

void ChannelStatistics::add(const VideoTokenizer& tokenizer, const at::Tensor& pixels_CTHW) {
  const at::Tensor latent = tokenizer.encode(pixels_CTHW);
  picture_.add(latent.narrow(1, 0, 1), picture_scales());
  if (latent.size(1) > 1) group_.add(latent.narrow(1, 1, latent.size(1) - 1), group_scales());
}

ChannelStatistics::Deviations combine(const std::vector<ChannelStatistics::Deviations>& kinds) {
  ChannelStatistics::Deviations result{};
  for (std::size_t i = 0; i < result.size(); ++i) {
    for (const auto& kind : kinds) result[i] += kind[i] * kind[i] / static_cast<double>(kinds.size());
    result[i] = std::sqrt(result[i]);
  }
  return result;
}

at::Tensor pixels_of_rgb(const at::Tensor& rgb_THW3) {
  return rgb_THW3.permute({3, 0, 1, 2}).to(at::kFloat).contiguous().div_(127.5).sub_(1);
}

double psnr(const at::Tensor& a, const at::Tensor& b) {
  return 10 * std::log10(4.0 / (a - b).square().mean().to(at::kDouble).item<double>());
}

}  // namespace dfm::models
