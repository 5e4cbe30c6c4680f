#include "dfm/data/source.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "data/media_folder_source.h"
#include "data/synthetic_butterflies.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

constexpr std::string_view kSyntheticPrefix = "synthetic:";
constexpr std::string_view kButterflies = "butterflies";
constexpr std::size_t kDefaultButterflies = 1600;
constexpr std::size_t kMaxButterflies = 1'000'000'000;

std::unique_ptr<Source> open_synthetic(const std::string& input, std::uint64_t seed) {
  std::string_view rest = std::string_view(input).substr(kSyntheticPrefix.size());
  const std::size_t colon = rest.find(':');
  if (rest.substr(0, colon) != kButterflies) {
    throw ConfigError("--input: got {}, want synthetic:butterflies[:COUNT] or a folder; hint: synthetic:butterflies",
                      input);
  }
  if (colon == std::string_view::npos) return make_synthetic_butterflies(seed, kDefaultButterflies);
  rest.remove_prefix(colon + 1);
  std::size_t count = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
  if (error != std::errc() || end != rest.data() + rest.size() || count < 1 || count > kMaxButterflies) {
    throw ConfigError("--input: got {}, want a count from 1 to {} after synthetic:butterflies:", input,
                      kMaxButterflies);
  }
  return make_synthetic_butterflies(seed, count);
}

}  // namespace

std::unique_ptr<Source> open_source(const std::string& input, std::uint64_t seed) {
  if (input.starts_with(kSyntheticPrefix)) return open_synthetic(input, seed);
  return open_media_folder(input);
}

Size target_size(std::int64_t height, std::int64_t width, const LoadLimits& limits) {
  const std::int64_t multiple = limits.side_multiple;
  if (limits.short_side < multiple) {
    throw ConfigError("--short-side: got {}, want at least {}", limits.short_side, multiple);
  }
  const double scale = static_cast<double>(limits.short_side) / static_cast<double>(std::min(height, width));
  const auto side = [&](std::int64_t pixels) {
    const auto scaled = std::llround(static_cast<double>(pixels) * scale);
    return std::max<std::int64_t>(multiple, scaled / multiple * multiple);
  };
  return {side(height), side(width)};
}

}  // namespace dfm::data
