#include "models/builtin/dct_tokenizer.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "dfm/base/error.h"

namespace dfm::models {
namespace {

constexpr std::int64_t kSide = 8, kGroup = 4, kColours = 3;
// Blocks that are unfolded at once: bounds the memory beside input and output (768 floats a block).
constexpr std::int64_t kBlocksAtOnce = 1 << 16;

struct Frequency {
  std::int64_t colour, t, y, x;
};
using Frequencies = std::array<Frequency, kDctChannels>;

constexpr Frequencies kPictureFrequencies = {{{0, 0, 0, 0},
                                              {0, 0, 0, 1},
                                              {0, 0, 1, 0},
                                              {0, 0, 1, 1},
                                              {0, 0, 0, 2},
                                              {0, 0, 2, 0},
                                              {0, 0, 1, 2},
                                              {0, 0, 2, 1},
                                              {0, 0, 0, 3},
                                              {0, 0, 3, 0},
                                              {1, 0, 0, 0},
                                              {1, 0, 0, 1},
                                              {1, 0, 1, 0},
                                              {2, 0, 0, 0},
                                              {2, 0, 0, 1},
                                              {2, 0, 1, 0}}};
constexpr Frequencies kGroupFrequencies = {{{0, 0, 0, 0},
                                            {0, 0, 0, 1},
                                            {0, 0, 1, 0},
                                            {0, 0, 1, 1},
                                            {0, 0, 0, 2},
                                            {0, 0, 2, 0},
                                            {0, 0, 1, 2},
                                            {0, 0, 2, 1},
                                            {0, 1, 0, 0},
                                            {0, 1, 0, 1},
                                            {1, 0, 0, 0},
                                            {1, 0, 0, 1},
                                            {1, 0, 1, 0},
                                            {2, 0, 0, 0},
                                            {2, 0, 0, 1},
                                            {2, 0, 1, 0}}};

double cosine(std::int64_t length, std::int64_t frequency, std::int64_t position) {
  const double n = static_cast<double>(length);
  const double angle = std::numbers::pi * static_cast<double>((2 * position + 1) * frequency) / (2 * n);
  return std::sqrt((frequency == 0 ? 1.0 : 2.0) / n) * std::cos(angle);
}

double colour_weight(std::int64_t axis, std::int64_t rgb) {
  static const std::array<std::array<double, 3>, 3> kAxes = {
      {{1 / std::sqrt(3.0), 1 / std::sqrt(3.0), 1 / std::sqrt(3.0)},
       {1 / std::sqrt(2.0), 0.0, -1 / std::sqrt(2.0)},
       {-1 / std::sqrt(6.0), 2 / std::sqrt(6.0), -1 / std::sqrt(6.0)}}};
  return kAxes[static_cast<std::size_t>(axis)][static_cast<std::size_t>(rgb)];
}

// [16, 3 * frames * 8 * 8], rows orthonormal, columns in the order (colour, t, y, x); row i times factor(i).
template <typename Factor>
at::Tensor basis(const Frequencies& frequencies, std::int64_t frames, Factor factor) {
  const std::int64_t columns = kColours * frames * kSide * kSide;
  const at::Tensor rows = at::empty({kDctChannels, columns}, at::kDouble);
  double* value = rows.mutable_data_ptr<double>();
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const Frequency& f = frequencies[i];
    for (std::int64_t c = 0; c < kColours; ++c) {
      for (std::int64_t t = 0; t < frames; ++t) {
        for (std::int64_t y = 0; y < kSide; ++y) {
          for (std::int64_t x = 0; x < kSide; ++x) {
            *value++ = factor(i) * colour_weight(f.colour, c) * cosine(frames, f.t, t) * cosine(kSide, f.y, y) *
                       cosine(kSide, f.x, x);
          }
        }
      }
    }
  }
  return rows;
}

// [3, n * frames, H, W] to [16, n, H/8, W/8].
at::Tensor encode_blocks(const at::Tensor& pixels, const at::Tensor& rows, std::int64_t frames) {
  const std::int64_t n = pixels.size(1) / frames, h = pixels.size(2) / kSide, w = pixels.size(3) / kSide;
  const at::Tensor blocks = pixels.reshape({kColours, n, frames, h, kSide, w, kSide})
                                .permute({1, 3, 5, 0, 2, 4, 6})
                                .reshape({n * h * w, rows.size(1)});
  return rows.matmul(blocks.t()).reshape({kDctChannels, n, h, w});
}

// [16, n, h, w] to [3, n * frames, 8 h, 8 w], into `pixels`.
void decode_blocks(const at::Tensor& latent, const at::Tensor& rows, std::int64_t frames, const at::Tensor& pixels) {
  const std::int64_t n = latent.size(1), h = latent.size(2), w = latent.size(3);
  const at::Tensor blocks = latent.reshape({kDctChannels, n * h * w}).t().matmul(rows);
  pixels.unflatten(1, {n, frames})
      .unflatten(3, {h, kSide})
      .unflatten(5, {w, kSide})
      .copy_(blocks.reshape({n, h, w, kColours, frames, kSide, kSide}).permute({3, 0, 4, 1, 5, 2, 6}));
}

}  // namespace

// Measured by `dfm_psnr IMAGES VIDEOS` (tools/dfm_bench) over pictures, clips and drawn butterflies, each kind of media
// with the same weight; a test measures again.
const ChannelScales& picture_scales() {
  static constexpr ChannelScales kScales = {2.469,  1.322,  1.274, 1.015, 0.9524, 0.8871, 0.8357, 0.7874,
                                            0.7001, 0.6628, 1.693, 0.767, 0.7418, 1.172,  0.5946, 0.5672};
  return kScales;
}

const ChannelScales& group_scales() {
  static constexpr ChannelScales kScales = {4.543, 2.424, 2.334, 1.863, 1.742, 1.562, 1.558, 1.365,
                                            1.701, 1.679, 3.159, 1.521, 1.427, 2.291, 1.219, 1.122};
  return kScales;
}

ChannelScales scales_from_deviations(const std::array<double, kDctChannels>& deviations) {
  // Latent deviation of a channel: d / (k sqrt d) = sqrt(d) / k; its mean square over the channels is mean(d) / k^2.
  double mean = 0;
  for (const double deviation : deviations) mean += deviation / static_cast<double>(kDctChannels);
  ChannelScales scales{};
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = std::sqrt(mean * deviations[i]);
  return scales;
}

DctTokenizer::DctTokenizer(at::Device device) : device_(device) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat).device(device);
  const auto make = [&](const Frequencies& frequencies, std::int64_t frames, const ChannelScales& scales, bool encode) {
    return basis(frequencies, frames, [&](std::size_t i) { return encode ? 1 / scales[i] : scales[i]; }).to(options);
  };
  picture_encode_ = make(kPictureFrequencies, 1, picture_scales(), true);
  picture_decode_ = make(kPictureFrequencies, 1, picture_scales(), false);
  group_encode_ = make(kGroupFrequencies, kGroup, group_scales(), true);
  group_decode_ = make(kGroupFrequencies, kGroup, group_scales(), false);
}

at::Tensor DctTokenizer::encode(const at::Tensor& pixels_CTHW) const {
  const at::NoGradGuard no_grad;
  const auto sizes = pixels_CTHW.sizes();
  if (sizes.size() != 4 || sizes[0] != kColours || (sizes[1] - 1) % kGroup != 0 || sizes[2] % kSide != 0 ||
      sizes[3] % kSide != 0 || pixels_CTHW.numel() == 0) {
    throw DataError("pixels for the builtin tokenizer: got shape {}, want [3, 1 + 4 n, 8 h, 8 w]",
                    fmt::join(sizes, "x"));
  }
  const std::int64_t h = sizes[2] / kSide, w = sizes[3] / kSide, num_groups = (sizes[1] - 1) / kGroup;
  const at::Tensor latent = at::empty({kDctChannels, 1 + num_groups, h, w}, picture_encode_.options());
  const auto part = [&](std::int64_t first, std::int64_t frames) {
    const at::Tensor pixels = pixels_CTHW.narrow(1, first, frames).to(device_);
    return pixels.scalar_type() == at::kByte ? pixels.to(at::kFloat).div_(127.5).sub_(1) : pixels.to(at::kFloat);
  };
  latent.narrow(1, 0, 1).copy_(encode_blocks(part(0, 1), picture_encode_, 1));
  const std::int64_t step = std::max<std::int64_t>(1, kBlocksAtOnce / (h * w));
  for (std::int64_t g = 0; g < num_groups; g += step) {
    const std::int64_t n = std::min(step, num_groups - g);
    latent.narrow(1, 1 + g, n).copy_(encode_blocks(part(1 + g * kGroup, n * kGroup), group_encode_, kGroup));
  }
  return latent;
}

at::Tensor DctTokenizer::decode(const at::Tensor& latent_CTHW) const {
  const at::NoGradGuard no_grad;
  const auto sizes = latent_CTHW.sizes();
  if (sizes.size() != 4 || sizes[0] != kDctChannels || latent_CTHW.numel() == 0) {
    throw DataError("latent for the builtin tokenizer: got shape {}, want [16, t, h, w]", fmt::join(sizes, "x"));
  }
  const at::Tensor latent = latent_CTHW.to(device_, at::kFloat);
  const std::int64_t h = sizes[2], w = sizes[3], num_groups = sizes[1] - 1;
  const at::Tensor pixels =
      at::empty({kColours, 1 + num_groups * kGroup, h * kSide, w * kSide}, picture_decode_.options());
  decode_blocks(latent.narrow(1, 0, 1), picture_decode_, 1, pixels.narrow(1, 0, 1));
  const std::int64_t step = std::max<std::int64_t>(1, kBlocksAtOnce / (h * w));
  for (std::int64_t g = 0; g < num_groups; g += step) {
    const std::int64_t n = std::min(step, num_groups - g);
    decode_blocks(latent.narrow(1, 1 + g, n), group_decode_, kGroup, pixels.narrow(1, 1 + g * kGroup, n * kGroup));
  }
  return pixels;
}

}  // namespace dfm::models
