#pragma once
// How synthetic butterflies are drawn: seen from above, by signed distances, so that every edge is antialiased.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dfm::data {

struct ButterflyBackground {
  std::string_view phrase;  // the end of the caption
};
inline constexpr std::array<ButterflyBackground, 4> kButterflyBackgrounds{
    {{"in the blue sky"}, {"over green leaves"}, {"over pink flowers"}, {"over brown sand"}}};

struct ButterflySize {
  std::string_view name;
  double half_span;  // of the wings, fully open, as a part of the picture's side
};
inline constexpr std::array<ButterflySize, 3> kButterflySizes{{{"small", .32}, {"medium", .385}, {"large", .45}}};

// One butterfly on its background. Lengths are parts of the picture's side.
struct ButterflyPose {
  std::size_t colour = 0, background = 0, size = 0;  // rows of the tables
  bool has_spots = false;
  double rotation = 0;                // radians
  double offset_x = 0, offset_y = 0;  // from the middle
  double scale = 1;                   // around the size of its name
};

class ButterflyCanvas {
 public:
  ButterflyCanvas(const ButterflyPose& pose, std::int64_t side);
  // uint8 [side, side, 3]; `wing_width` 1: wings fully open, as seen from above.
  [[nodiscard]] at::Tensor draw(double wing_width) const;

 private:
  ButterflyPose pose_;
  std::int64_t side_;
  std::vector<float> background_;  // [side, side, 3], the same in every frame
};

}  // namespace dfm::data
