#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace dfm::generate {

// "the nearest are 117 and 121": frame counts 1 + k n around `frames`.
inline std::string nearest_frames_hint(std::int64_t frames, std::int64_t k) {
  const std::int64_t below = 1 + (frames - 1) / k * k;
  return fmt::format("the nearest are {} and {}", below, below + k);
}

}  // namespace dfm::generate
