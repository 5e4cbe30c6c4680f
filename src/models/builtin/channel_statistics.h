#pragma once
// What the builtin tokenizer's constants are measured with: `dfm_psnr` prints the result, a test holds the constants
// against it.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>

#include "models/builtin/dct_tokenizer.h"

namespace dfm::models {

// Moments of the coefficients (before scaling) of one kind of media.
class ChannelStatistics {
 public:
  using Deviations = std::array<double, kDctChannels>;
  // Pixels of one picture or clip, as the tokenizer takes them.
  void add(const VideoTokenizer& tokenizer, const at::Tensor& pixels_CTHW);
  // Standard deviation of each channel over what was added; nothing before there was any.
  [[nodiscard]] std::optional<Deviations> picture_deviations() const { return picture_.deviations(); }
  [[nodiscard]] std::optional<Deviations> group_deviations() const { return group_.deviations(); }

 private:
  struct Moments {
    double count = 0;
    Deviations sum{}, sum_squares{};
    void add(const at::Tensor& latent_CTHW, const ChannelScales& scales);
    [[nodiscard]] std::optional<Deviations> deviations() const;
  };
  Moments picture_, group_;
};

// The root mean square over kinds of media, each with the same weight whatever its size.
ChannelStatistics::Deviations combine(const std::vector<ChannelStatistics::Deviations>& kinds);

// [T, H, W, 3] uint8 to [3, T, H, W] in [-1, 1].
at::Tensor pixels_of_rgb(const at::Tensor& rgb_THW3);

// Peak signal-to-noise ratio of pixels in [-1, 1], dB.
double psnr(const at::Tensor& a, const at::Tensor& b);

}  // namespace dfm::models
