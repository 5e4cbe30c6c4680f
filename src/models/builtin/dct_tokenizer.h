#pragma once
// The weightless video tokenizer: the 16 lowest frequencies of an orthonormal cosine transform (DCT-II) over blocks of
// 8x8 pixels of the first frame and of 8x8 pixels x 4 frames after it. Geometry of Cosmos' CV4x8x8, no learned
// compression: docs/numerics.md says what it keeps.
//
//   colour axes   Y = (R+G+B)/sqrt 3, P = (R-B)/sqrt 2, Q = (-R+2G-B)/sqrt 6
//   first frame   10 of Y, 3 of P, 3 of Q
//   groups of 4   8 of Y at temporal frequency 0, 2 of Y at 1, 3 of P and 3 of Q at 0
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>

#include "dfm/models/encoders.h"

namespace dfm::models {

inline constexpr std::int64_t kDctChannels = 16;
using ChannelScales = std::array<double, kDctChannels>;

// What the coefficients are divided by, so that the latent's rms over the channels is about 1 on real media and
// butterflies together: k sqrt(standard deviation of the channel), k the same for all channels of a kind. (Dividing by
// the standard deviation itself makes the noise of high frequencies as important as the colour; one common factor
// leaves them too faint.) Part of prepared data sets: changing them makes old latents and checkpoints wrong.
const ChannelScales& picture_scales();
const ChannelScales& group_scales();
// The scales that the standard deviations of a kind's channels ask for.
ChannelScales scales_from_deviations(const std::array<double, kDctChannels>& deviations);

class DctTokenizer final : public VideoTokenizer {
 public:
  explicit DctTokenizer(at::Device device);
  [[nodiscard]] std::string name() const override { return "builtin"; }
  [[nodiscard]] std::int64_t latent_channels() const override { return kDctChannels; }
  [[nodiscard]] std::int64_t temporal_compression() const override { return 4; }
  [[nodiscard]] std::int64_t spatial_compression() const override { return 8; }
  [[nodiscard]] at::Tensor encode(const at::Tensor& pixels_CTHW) const override;
  [[nodiscard]] at::Tensor decode(const at::Tensor& latent_CTHW) const override;

 private:
  at::Device device_;
  // [16, 192] of a picture block (colour, y, x) and [16, 768] of a group block (colour, t, y, x), orthonormal rows;
  // divided by the scales to encode, multiplied by them to decode.
  at::Tensor picture_encode_, picture_decode_, group_encode_, group_decode_;
};

}  // namespace dfm::models
