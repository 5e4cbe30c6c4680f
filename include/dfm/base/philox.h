#pragma once
// Everything random in dfm is a pure function of named counters: Philox4x32-10 (Salmon et al., SC 2011) with
//   key     = the 64-bit rng.seed
//   counter = (n low, n high, element / 4, purpose)
// n: the position in the endless training stream; for parameters FNV-1a-64 of the global name; for generate the
// prompt's number. element: token * 64 + channel of the sample's own unpadded token order; for a parameter the
// row-major index. There is no generator state. Example: normal noise for elements [0, out.size()) of sample 17
//   philox_normal(seed, 17, Purpose::kNoise, 0, out);
// docs/numerics.md holds test vectors.
#include <array>
#include <cstdint>
#include <span>

namespace dfm {

enum class Purpose : std::uint32_t {  // on disk in spirit: a changed value changes every run
  kNoise = 1,
  kSigma = 2,
  kTextDropout = 3,
  kOrder = 4,
  kParameter = 5,
  kGenerate = 6,
  kSynthetic = 7,
  kBlend = 8,
  kText = 9,
};

using PhiloxBlock = std::array<std::uint32_t, 4>;

// The raw function: ten rounds on a counter of four words with a key of two.
PhiloxBlock philox4x32_10(PhiloxBlock counter, std::array<std::uint32_t, 2> key);

// Block `block` (= element / 4) of the stream (seed, n, purpose).
PhiloxBlock philox(std::uint64_t seed, std::uint64_t n, std::uint32_t block, Purpose purpose);

// A uniform in the open interval (0, 1), 24 bits: (x >> 9 + 1/2) / 2^23.
inline float philox_uniform(std::uint32_t x) { return (static_cast<float>(x >> 9) + 0.5F) * 0x1p-23F; }

// The uniform of one element.
float philox_uniform(std::uint64_t seed, std::uint64_t n, std::uint64_t element, Purpose purpose);

// Four normals of a block, by Box-Muller on words (0,1) and (2,3): r = sqrt(-2 ln u(x0)), angle = 2 pi (x1 >> 8) /
// 2^24, giving (r cos, r sin, r' cos', r' sin'). Computed in double and rounded once; the CUDA kernel is within 4 ulp.
std::array<float, 4> philox_normal4(PhiloxBlock block);

// Normals of elements [first, first + out.size()).
void philox_normal(std::uint64_t seed, std::uint64_t n, Purpose purpose, std::uint64_t first, std::span<float> out);

// A keyed permutation of [0, n): where item `index` of the identity goes in permutation number `epoch`. A Feistel
// network with Philox as its round function, cycle-walking to stay below n, so any position is computed without the
// others. n >= 1.
std::uint64_t philox_permute(std::uint64_t seed, std::uint64_t epoch, std::uint64_t n, std::uint64_t index,
                             Purpose purpose);

}  // namespace dfm
