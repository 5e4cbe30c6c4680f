#include "data/butterfly_drawing.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dfm/data/butterfly_colours.h"

namespace dfm::data {
namespace {

struct Point {
  float x, y;
};
using Colour = std::array<float, 3>;

// Outlines of the right wings, x outwards, y to the head, in units of the open half span; the left wings mirror them.
// Large smooth shapes with a notch between the two: what is left of a butterfly after coarse coding.
constexpr std::array<Point, 11> kForewing{{{.02F, .24F},
                                           {.24F, .50F},
                                           {.54F, .78F},
                                           {.82F, .93F},
                                           {.98F, .90F},
                                           {1.00F, .72F},
                                           {.93F, .48F},
                                           {.84F, .26F},
                                           {.70F, .09F},
                                           {.36F, .00F},
                                           {.02F, -.04F}}};
constexpr std::array<Point, 10> kHindwing{{{.02F, .08F},
                                           {.36F, .06F},
                                           {.66F, .02F},
                                           {.82F, -.12F},
                                           {.84F, -.34F},
                                           {.72F, -.60F},
                                           {.52F, -.79F},
                                           {.34F, -.78F},
                                           {.20F, -.52F},
                                           {.02F, -.14F}}};
constexpr std::array<Point, 4> kAntenna{{{.03F, .44F}, {.09F, .62F}, {.18F, .80F}, {.29F, .94F}}};
struct Disc {
  Point centre;
  float radius;
};
constexpr std::array<Disc, 2> kSpots{{{{.68F, .58F}, .15F}, {{.52F, -.40F}, .14F}}};
constexpr float kMiddleY = .06F;   // of the whole figure, put in the middle of the picture
constexpr float kRimWidth = .16F;  // dark at the edge, fading inwards: a hard line would be lost in coarse coding
constexpr Colour kBody{48, 32, 28};
constexpr Colour kSpotColour{255, 255, 255};

// A closed Catmull-Rom curve through the points, as a polygon, x scaled.
template <std::size_t kCount>
std::vector<Point> outline(const std::array<Point, kCount>& points, float x_scale) {
  constexpr int kPieces = 4;
  std::vector<Point> result;
  for (std::size_t i = 0; i < kCount; ++i) {
    const Point a = points[(i + kCount - 1) % kCount], b = points[i], c = points[(i + 1) % kCount],
                d = points[(i + 2) % kCount];
    for (int k = 0; k < kPieces; ++k) {
      const float t = static_cast<float>(k) / kPieces;
      const auto curve = [t](float p, float q, float r, float s) {
        return q + .5F * t * (r - p + t * (2 * p - 5 * q + 4 * r - s + t * (3 * (q - r) + s - p)));
      };
      result.push_back({x_scale * curve(a.x, b.x, c.x, d.x), curve(a.y, b.y, c.y, d.y)});
    }
  }
  return result;
}

// Signed distances of a row of points to a polygon, positive inside. The loop over points is inner so that it becomes
// vector code.
void polygon_distances(const std::vector<Point>& polygon, const std::vector<float>& xs, const std::vector<float>& ys,
                       std::vector<float>& squares, std::vector<float>& distances) {
  const std::size_t count = xs.size();
  std::fill(squares.begin(), squares.end(), 1e9F);
  std::fill(distances.begin(), distances.end(), -1.0F);  // the sign; flips at every crossing to the right
  for (std::size_t i = 0; i < polygon.size(); ++i) {
    const Point a = polygon[i], b = polygon[(i + 1) % polygon.size()];
    const float ex = b.x - a.x, ey = b.y - a.y;
    const float inverse = 1 / (ex * ex + ey * ey);
    const float slope = ey != 0 ? ex / ey : 0;
    for (std::size_t k = 0; k < count; ++k) {
      const float px = xs[k] - a.x, py = ys[k] - a.y;
      const float t = std::min(1.0F, std::max(0.0F, (px * ex + py * ey) * inverse));
      const float qx = px - t * ex, qy = py - t * ey;
      squares[k] = std::min(squares[k], qx * qx + qy * qy);
      const bool crosses = (a.y <= ys[k]) != (b.y <= ys[k]) && px < py * slope;
      distances[k] = crosses ? -distances[k] : distances[k];
    }
  }
  for (std::size_t k = 0; k < count; ++k) distances[k] *= std::sqrt(squares[k]);
}

float ellipse_distance(float x, float y, float radius_x, float radius_y) {
  const float k0 = std::hypot(x / radius_x, y / radius_y);
  const float k1 = std::hypot(x / (radius_x * radius_x), y / (radius_y * radius_y));
  return k1 > 0 ? k0 * (1 - k0) / k1 : std::min(radius_x, radius_y);
}

float segment_distance(float x, float y, Point a, Point b) {
  const float ex = b.x - a.x, ey = b.y - a.y, px = x - a.x, py = y - a.y;
  const float t = std::clamp((px * ex + py * ey) / (ex * ex + ey * ey), 0.0F, 1.0F);
  return std::hypot(px - t * ex, py - t * ey);
}

void blend(float* pixel, const Colour& colour, float amount) {
  amount = std::clamp(amount, 0.0F, 1.0F);
  for (std::size_t c = 0; c < 3; ++c) pixel[c] += amount * (colour[c] - pixel[c]);
}

Colour scaled(const Colour& colour, float factor) {
  return {colour[0] * factor, colour[1] * factor, colour[2] * factor};
}

float smooth_step(float low, float high, float x) {
  const float t = std::clamp((x - low) / (high - low), 0.0F, 1.0F);
  return t * t * (3 - 2 * t);
}

// ---- Backgrounds: pale, so that only wings are saturated, and the same in every sample. x, y in [0, 1], y down.

void sky(float x, float y, float /*pixel*/, float* out) {
  blend(out, {160, 205, 246}, 1);
  blend(out, {214, 234, 250}, y);
  constexpr std::array<Disc, 7> kPuffs{{{{.10F, .16F}, .09F},
                                        {{.20F, .13F}, .10F},
                                        {{.30F, .17F}, .07F},
                                        {{.80F, .88F}, .10F},
                                        {{.91F, .86F}, .11F},
                                        {{.70F, .91F}, .07F},
                                        {{.95F, .12F}, .07F}}};
  float cloud = 0;
  for (const Disc& puff : kPuffs) {
    const float distance = std::hypot(x - puff.centre.x, 1.5F * (y - puff.centre.y)) / puff.radius;
    cloud = std::max(cloud, 1 - smooth_step(.55F, 1.15F, distance));
  }
  blend(out, {255, 255, 255}, cloud);
}

void leaves(float x, float y, float pixel, float* out) {
  blend(out, {178, 205, 160}, 1);
  struct Leaf {
    Point centre;
    float length, angle;
    bool is_dark;
  };
  constexpr std::array<Leaf, 7> kLeaves{{{{.12F, .20F}, .24F, .9F, true},
                                         {{.85F, .18F}, .25F, 2.3F, false},
                                         {{.50F, .06F}, .22F, .1F, false},
                                         {{.10F, .80F}, .26F, -.8F, false},
                                         {{.88F, .82F}, .25F, .7F, true},
                                         {{.50F, .94F}, .22F, -.2F, true},
                                         {{.50F, .50F}, .27F, 1.2F, true}}};
  for (const Leaf& leaf : kLeaves) {
    const float c = std::cos(leaf.angle), s = std::sin(leaf.angle);
    const float dx = x - leaf.centre.x, dy = y - leaf.centre.y;
    const float along = c * dx + s * dy, across = -s * dx + c * dy;
    // The overlap of two discs: a leaf's pointed oval.
    const float radius = .95F * leaf.length, shift = .55F * leaf.length;
    const float distance = radius - std::hypot(along, std::abs(across) + shift);
    const Colour colour = leaf.is_dark ? Colour{140, 180, 128} : Colour{158, 194, 140};
    blend(out, colour, distance / pixel + .5F);
    if (distance > 0) blend(out, {196, 216, 176}, (.006F - std::abs(across)) / pixel + .5F);
  }
}

void flowers(float x, float y, float pixel, float* out) {
  blend(out, {250, 232, 236}, 1);
  constexpr std::array<Disc, 8> kFlowers{{{{.12F, .14F}, .15F},
                                          {{.88F, .13F}, .15F},
                                          {{.50F, .05F}, .12F},
                                          {{.05F, .52F}, .12F},
                                          {{.95F, .50F}, .12F},
                                          {{.13F, .87F}, .15F},
                                          {{.87F, .87F}, .15F},
                                          {{.50F, .96F}, .12F}}};
  for (const Disc& flower : kFlowers) {
    const float dx = x - flower.centre.x, dy = y - flower.centre.y;
    const float radius = std::hypot(dx, dy), angle = std::atan2(dy, dx);
    const float petal = flower.radius * (.72F + .28F * std::abs(std::cos(2.5F * angle + 20 * flower.centre.x)));
    blend(out, {243, 186, 206}, (petal - radius) / pixel + .5F);
    blend(out, {244, 224, 176}, (.28F * flower.radius - radius) / pixel + .5F);
  }
}

void sand(float x, float y, float /*pixel*/, float* out) {
  const float wave = y + .025F * std::sin(2 * std::numbers::pi_v<float> * x + 1);
  const float ripple = .5F + .5F * std::sin(2 * std::numbers::pi_v<float> * 5 * wave);
  blend(out, {206, 180, 140}, 1);
  blend(out, {224, 201, 162}, ripple);
}

using Background = void (*)(float, float, float, float*);
constexpr std::array<Background, kButterflyBackgrounds.size()> kPainters{sky, leaves, flowers, sand};

Colour wing_colour(std::size_t index) {
  const auto& rgb = kButterflyColours.at(index).rgb;
  return {static_cast<float>(rgb[0]), static_cast<float>(rgb[1]), static_cast<float>(rgb[2])};
}

// One wing over a pixel: filled, a little lighter towards the body, with a dark rim. All lengths in half spans.
void blend_wing(float* pixel, float distance, float pixel_size, float tone, float from_body, const Colour& colour) {
  if (distance < -pixel_size) return;
  Colour fill = scaled(colour, tone);
  blend(fill.data(), scaled(colour, .3F), 1 - smooth_step(.25F * kRimWidth, kRimWidth, distance));
  blend(fill.data(), {255, 255, 255}, .22F * (1 - smooth_step(0, .45F, from_body)));
  blend(pixel, fill, distance / pixel_size + .5F);
}

}  // namespace

ButterflyCanvas::ButterflyCanvas(const ButterflyPose& pose, std::int64_t side)
    : pose_(pose), side_(side), background_(static_cast<std::size_t>(side * side * 3)) {
  const float pixel = 1 / static_cast<float>(side);
  float* out = background_.data();
  for (std::int64_t y = 0; y < side; ++y) {
    for (std::int64_t x = 0; x < side; ++x, out += 3) {
      kPainters.at(pose.background)((static_cast<float>(x) + .5F) * pixel, (static_cast<float>(y) + .5F) * pixel, pixel,
                                    out);
    }
  }
}

at::Tensor ButterflyCanvas::draw(double wing_width) const {
  const auto count = static_cast<std::size_t>(side_);
  const Colour colour = wing_colour(pose_.colour);
  const auto width = static_cast<float>(wing_width);
  const std::vector<Point> forewing = outline(kForewing, width), hindwing = outline(kHindwing, width);
  const auto unit = static_cast<float>(kButterflySizes.at(pose_.size).half_span * pose_.scale);  // half span / side
  const float pixel_size = 1 / (static_cast<float>(side_) * unit);                               // in half spans
  const auto cosine = static_cast<float>(std::cos(pose_.rotation)), sine = static_cast<float>(std::sin(pose_.rotation));

  at::Tensor rgb = at::empty({side_, side_, 3}, at::kByte);
  std::uint8_t* out = rgb.data_ptr<std::uint8_t>();
  std::vector<float> xs(count), ys(count), squares(count), fore(count), hind(count);
  for (std::size_t row = 0; row < count; ++row) {
    for (std::size_t k = 0; k < count; ++k) {
      const float dx =
          ((static_cast<float>(k) + .5F) / static_cast<float>(side_) - .5F - static_cast<float>(pose_.offset_x)) / unit;
      const float dy =
          (.5F + static_cast<float>(pose_.offset_y) - (static_cast<float>(row) + .5F) / static_cast<float>(side_)) /
          unit;
      xs[k] = std::abs(cosine * dx + sine * dy);
      ys[k] = cosine * dy - sine * dx + kMiddleY;
    }
    polygon_distances(hindwing, xs, ys, squares, hind);
    polygon_distances(forewing, xs, ys, squares, fore);
    for (std::size_t k = 0; k < count; ++k) {
      const float x = xs[k], y = ys[k];
      float pixel[3];
      std::copy_n(background_.data() + 3 * (row * count + k), 3, pixel);
      const float from_body = std::hypot(x, .6F * y);
      blend_wing(pixel, hind[k], pixel_size, .86F, from_body, colour);
      blend_wing(pixel, fore[k], pixel_size, 1, from_body, colour);
      if (pose_.has_spots) {
        for (const Disc& spot : kSpots) {
          const float distance = spot.radius - std::hypot(x - width * spot.centre.x, y - spot.centre.y);
          blend(pixel, kSpotColour, distance / pixel_size + .5F);
        }
      }
      float body = std::max(ellipse_distance(x, y + .12F, .085F, .46F), .105F - std::hypot(x, y - .37F));
      for (std::size_t i = 0; i + 1 < kAntenna.size(); ++i) {
        body = std::max(body, .022F - segment_distance(x, y, kAntenna[i], kAntenna[i + 1]));
      }
      body = std::max(body, .05F - std::hypot(x - kAntenna.back().x, y - kAntenna.back().y));
      blend(pixel, kBody, body / pixel_size + .5F);
      for (const float value : pixel) *out++ = static_cast<std::uint8_t>(std::lround(std::clamp(value, 0.0F, 255.0F)));
    }
  }
  return rgb;
}

}  // namespace dfm::data
