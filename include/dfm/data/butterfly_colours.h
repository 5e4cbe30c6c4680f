#pragma once
// The wing colours of synthetic:butterflies. The demo looks for them in what the trained model makes.
#include <array>
#include <cstdint>
#include <string_view>

namespace dfm::data {

struct ButterflyColour {
  std::string_view name;  // as captions say it
  std::array<std::uint8_t, 3> rgb;
};

inline constexpr std::array<ButterflyColour, 8> kButterflyColours{{
    {"red", {222, 24, 28}},
    {"orange", {250, 128, 10}},
    {"yellow", {250, 222, 20}},
    {"green", {20, 150, 60}},
    {"cyan", {10, 200, 205}},
    {"blue", {30, 60, 215}},
    {"purple", {130, 40, 190}},
    {"white", {250, 250, 250}},
}};

}  // namespace dfm::data
