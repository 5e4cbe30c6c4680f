#pragma once
// The wing colours of synthetic:butterflies, and how to see them again in what a trained model makes.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>

namespace dfm::data {

struct ButterflyColour {
  std::string_view name;  // as captions say it
  std::array<std::uint8_t, 3> rgb;
};

// At least 25 degrees of hue apart, and far more saturated than the four backgrounds.
inline constexpr std::array<ButterflyColour, 8> kButterflyColours{{
    {"red", {214, 26, 32}},
    {"orange", {255, 120, 0}},
    {"yellow", {250, 232, 20}},
    {"green", {24, 160, 70}},
    {"cyan", {0, 195, 208}},
    {"blue", {32, 78, 220}},
    {"purple", {125, 40, 190}},
    {"pink", {250, 75, 178}},
}};

// The colour of the list whose hue most of the saturated pixels have, weighted by how saturated they are; "" when
// there are hardly any. `rgb` is uint8 with the colours in its last dim: a picture or a clip.
std::string_view dominant_butterfly_colour(const at::Tensor& rgb);

}  // namespace dfm::data
