#include "dfm/base/philox.h"

#include <cmath>
#include <numbers>

namespace dfm {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85;

}  // namespace

PhiloxBlock philox4x32_10(PhiloxBlock counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
    const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

PhiloxBlock philox(std::uint64_t seed, std::uint64_t n, std::uint32_t block, Purpose purpose) {
  return philox4x32_10(
      {static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(n >> 32), block, static_cast<std::uint32_t>(purpose)},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
}

float philox_uniform(std::uint64_t seed, std::uint64_t n, std::uint64_t element, Purpose purpose) {
  return philox_uniform(philox(seed, n, static_cast<std::uint32_t>(element / 4), purpose)[element % 4]);
}

std::array<float, 4> philox_normal4(PhiloxBlock block) {
  std::array<float, 4> normals{};
  for (std::size_t pair = 0; pair < 2; ++pair) {
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(philox_uniform(block[2 * pair]))));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(block[2 * pair + 1] >> 8) * 0x1p-24;
    normals[2 * pair] = static_cast<float>(radius * std::cos(angle));
    normals[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return normals;
}

void philox_normal(std::uint64_t seed, std::uint64_t n, Purpose purpose, std::uint64_t first, std::span<float> out) {
  for (std::uint64_t i = 0; i < out.size();) {
    const std::uint64_t element = first + i;
    const std::array<float, 4> normals =
        philox_normal4(philox(seed, n, static_cast<std::uint32_t>(element / 4), purpose));
    for (std::uint64_t lane = element % 4; lane < 4 && i < out.size(); ++lane, ++i) out[i] = normals[lane];
  }
}

std::uint64_t philox_permute(std::uint64_t seed, std::uint64_t epoch, std::uint64_t n, std::uint64_t index,
                             Purpose purpose) {
  std::uint32_t half_bits = 1;
  while (half_bits < 32 && (std::uint64_t{1} << (2 * half_bits)) < n) ++half_bits;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  constexpr std::uint32_t kRounds = 6;
  std::uint64_t value = index;
  do {
    std::uint64_t left = value >> half_bits;
    std::uint64_t right = value & mask;
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      const PhiloxBlock mix =
          philox4x32_10({static_cast<std::uint32_t>(right), round, static_cast<std::uint32_t>(epoch),
                         static_cast<std::uint32_t>(purpose)},
                        {static_cast<std::uint32_t>(seed),
                         static_cast<std::uint32_t>(seed >> 32) ^ static_cast<std::uint32_t>(epoch >> 32)});
      const std::uint64_t next = left ^ (mix[0] & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits) | right;
  } while (value >= n);
  return value;
}

}  // namespace dfm
