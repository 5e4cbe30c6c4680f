#include "data/synthetic_butterflies.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "data/butterfly_drawing.h"
#include "dfm/base/error.h"
#include "dfm/base/philox.h"
#include "dfm/data/butterfly_colours.h"

namespace dfm::data {
namespace {

// How much a butterfly varies. More (turns of 20 degrees, any wing phase) is more than the demo's small model learns
// in its few minutes.
constexpr double kFps = 24;
constexpr std::int64_t kNumFrames = 9;
constexpr double kPeriodFrames = 24;  // one beat of the wings
constexpr double kMaxRotation = .05;
constexpr double kMaxOffset = .007;
constexpr double kMaxScale = .0075;
constexpr double kMaxPhase = .47;

constexpr std::size_t kNumCombinations =
    kButterflyColours.size() * kButterflyBackgrounds.size() * kButterflySizes.size() * 2;

bool is_clip(std::size_t index) { return index % 2 == 1; }

std::int64_t num_frames_of(std::size_t index, const LoadLimits& limits) {
  if (!is_clip(index)) return 1;
  const double seconds = static_cast<double>(kNumFrames - 1) / kFps;
  const auto shown = static_cast<std::int64_t>(std::floor(seconds * limits.fps.value_or(kFps) + 1e-6)) + 1;
  const std::int64_t num_frames = std::min(shown, limits.num_video_frames);
  return (num_frames - 1) / limits.temporal_compression * limits.temporal_compression + 1;
}

class SyntheticButterflies : public Source {
 public:
  SyntheticButterflies(std::uint64_t seed, std::size_t count) : seed_(seed), count_(count) {}
  [[nodiscard]] std::size_t size() const override { return count_; }
  [[nodiscard]] std::string name(std::size_t index) const override { return fmt::format("butterfly-{:09d}", index); }
  [[nodiscard]] SourceItem item(std::size_t index) const override;
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const override {
    const std::int64_t side = target_size(limits.short_side, limits.short_side, limits).height;
    return side * side * num_frames_of(index, limits);
  }
  [[nodiscard]] SourceMedia load(std::size_t index, const LoadLimits& limits) const override;
  [[nodiscard]] std::string description() const override {
    return fmt::format("synthetic butterflies: {} pictures, {} clips", count_ - count_ / 2, count_ / 2);
  }
  [[nodiscard]] std::string default_encoder() const override { return "builtin"; }

 private:
  struct Drawn {
    ButterflyPose pose;
    double phase = 0;
  };
  [[nodiscard]] Drawn drawn(std::size_t index) const;

  std::uint64_t seed_;
  std::size_t count_;
};

SyntheticButterflies::Drawn SyntheticButterflies::drawn(std::size_t index) const {
  // Every run of 192 pictures, and of 192 clips, has each combination once, in an order of its own.
  const std::size_t number = index / 2;
  std::size_t combination = philox_permute(seed_, 2 * (number / kNumCombinations) + index % 2, kNumCombinations,
                                           number % kNumCombinations, Purpose::kSynthetic);
  const auto digit = [&combination](std::size_t base) {
    const std::size_t value = combination % base;
    combination /= base;
    return value;
  };
  // Elements from 2^20 on, clear of those that the permutation draws.
  const auto vary = [&](std::uint64_t element, double most) {
    return most * (2.0 * philox_uniform(seed_, index, (1U << 20) + element, Purpose::kSynthetic) - 1);
  };
  Drawn result;
  result.pose.colour = digit(kButterflyColours.size());
  result.pose.background = digit(kButterflyBackgrounds.size());
  result.pose.size = digit(kButterflySizes.size());
  result.pose.has_spots = digit(2) == 1;
  result.pose.rotation = vary(0, kMaxRotation);
  result.pose.offset_x = vary(1, kMaxOffset);
  result.pose.offset_y = vary(2, kMaxOffset);
  result.pose.scale = 1 + vary(3, kMaxScale);
  result.phase = vary(4, kMaxPhase);
  return result;
}

SourceItem SyntheticButterflies::item(std::size_t index) const {
  if (index >= count_) throw InternalError("synthetic butterfly: got number {}, want below {}", index, count_);
  const ButterflyPose pose = drawn(index).pose;
  const std::string caption =
      fmt::format("a {} {} butterfly{}{} {}", kButterflySizes[pose.size].name, kButterflyColours[pose.colour].name,
                  pose.has_spots ? " with white spots" : "", is_clip(index) ? " flapping its wings" : "",
                  kButterflyBackgrounds[pose.background].phrase);
  return {name(index), caption, is_clip(index)};
}

SourceMedia SyntheticButterflies::load(std::size_t index, const LoadLimits& limits) const {
  if (index >= count_) throw InternalError("synthetic butterfly: got number {}, want below {}", index, count_);
  const std::int64_t side = target_size(limits.short_side, limits.short_side, limits).height;
  const Drawn butterfly = drawn(index);
  const double fps = limits.fps.value_or(kFps);
  const std::int64_t num_frames = num_frames_of(index, limits);
  const ButterflyCanvas canvas(butterfly.pose, side);
  at::Tensor rgb = at::empty({num_frames, side, side, 3}, at::kByte);
  for (std::int64_t t = 0; t < num_frames; ++t) {
    const double beats = static_cast<double>(t) / fps * kFps / kPeriodFrames;
    rgb[t].copy_(canvas.draw(.78 + .22 * std::cos(2 * std::numbers::pi * beats + butterfly.phase)));
  }
  return {rgb, is_clip(index) ? fps : 0, side, side, is_clip(index) ? kNumFrames : 1};
}

}  // namespace

std::unique_ptr<Source> make_synthetic_butterflies(std::uint64_t seed, std::size_t count) {
  return std::make_unique<SyntheticButterflies>(seed, count);
}

}  // namespace dfm::data
