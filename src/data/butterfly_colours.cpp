#include "dfm/data/butterfly_colours.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/error.h"

namespace dfm::data {
namespace {

struct HueChroma {
  float hue = 0;  // degrees
  float chroma = 0;
};

HueChroma hue_chroma(const std::uint8_t* rgb) {
  const auto r = static_cast<float>(rgb[0]), g = static_cast<float>(rgb[1]), b = static_cast<float>(rgb[2]);
  const float highest = std::max({r, g, b}), chroma = highest - std::min({r, g, b});
  if (chroma <= 0) return {};
  const float sector = highest == r ? (g - b) / chroma : highest == g ? 2 + (b - r) / chroma : 4 + (r - g) / chroma;
  return {sector < 0 ? 60 * sector + 360 : 60 * sector, chroma};
}

}  // namespace

std::string_view dominant_butterfly_colour(const at::Tensor& rgb) {
  if (rgb.dim() < 1 || rgb.size(-1) != 3 || rgb.scalar_type() != at::kByte || !rgb.device().is_cpu()) {
    throw InternalError("dominant colour: got a tensor of {} dims, want uint8 [..., 3] on the CPU", rgb.dim());
  }
  constexpr float kPale = 80;  // the backgrounds' chroma stays below
  std::array<float, kButterflyColours.size()> hues{};
  for (std::size_t i = 0; i < hues.size(); ++i) hues[i] = hue_chroma(kButterflyColours[i].rgb.data()).hue;
  std::array<double, kButterflyColours.size()> weights{};
  const at::Tensor pixels = rgb.contiguous();
  const std::uint8_t* pixel = pixels.data_ptr<std::uint8_t>();
  const std::int64_t count = pixels.numel() / 3;
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i, pixel += 3) {
    const HueChroma seen = hue_chroma(pixel);
    if (seen.chroma <= kPale) continue;
    const auto apart = [&seen](float hue) { return 180 - std::abs(180 - std::abs(seen.hue - hue)); };
    const auto nearest =
        std::min_element(hues.begin(), hues.end(), [&](float a, float b) { return apart(a) < apart(b); });
    const double weight = (seen.chroma - kPale) * (seen.chroma - kPale);
    weights[static_cast<std::size_t>(nearest - hues.begin())] += weight;
    total += weight;
  }
  // One pixel in a hundred as saturated as the palest wing.
  if (total < .01 * static_cast<double>(count) * 60 * 60) return "";
  return kButterflyColours[static_cast<std::size_t>(std::max_element(weights.begin(), weights.end()) - weights.begin())]
      .name;
}

}  // namespace dfm::data
