// The same integers as base/philox.cpp; the normals in double, rounded once.
#include "ops/cuda/launch.h"

namespace dfm::ops::cuda {
namespace {

__device__ uint4 philox4x32_10(uint4 counter, unsigned key0, unsigned key1) {
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53U, counter.x), low0 = 0xD2511F53U * counter.x;
    const unsigned high1 = __umulhi(0xCD9E8D57U, counter.z), low1 = 0xCD9E8D57U * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

__device__ void box_muller(unsigned x0, unsigned x1, float* out) {
  const double uniform = (static_cast<double>(x0 >> 9) + 0.5) * 0x1p-23;
  const double radius = sqrt(-2.0 * log(uniform));
  double sine, cosine;
  sincospi(static_cast<double>(x1 >> 8) * 0x1p-23, &sine, &cosine);
  out[0] = static_cast<float>(radius * cosine);
  out[1] = static_cast<float>(radius * sine);
}

// One thread makes the four normals of a Philox block.
__global__ void philox_normal_kernel(float* out, std::int64_t size, unsigned key0, unsigned key1, unsigned n0,
                                     unsigned n1, unsigned purpose, std::uint64_t first) {
  const std::uint64_t first_block = first / 4;
  const std::uint64_t block = first_block + static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const uint4 words = philox4x32_10(make_uint4(n0, n1, static_cast<unsigned>(block), purpose), key0, key1);
  float normals[4];
  box_muller(words.x, words.y, normals);
  box_muller(words.z, words.w, normals + 2);
  for (int lane = 0; lane < 4; ++lane) {
    const std::int64_t at = static_cast<std::int64_t>(block * 4 + lane) - static_cast<std::int64_t>(first);
    if (at >= 0 && at < size) out[at] = normals[lane];
  }
}

}  // namespace

void philox_normal(float* out, std::int64_t size, std::uint64_t seed, std::uint64_t n, std::uint32_t purpose,
                   std::uint64_t first) {
  if (size == 0) return;
  constexpr int kThreads = 256;
  const auto num_blocks = static_cast<std::int64_t>((first + static_cast<std::uint64_t>(size) + 3) / 4 - first / 4);
  philox_normal_kernel<<<blocks_for(num_blocks, kThreads), kThreads, 0, stream()>>>(
      out, size, static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32), static_cast<unsigned>(n),
      static_cast<unsigned>(n >> 32), purpose, first);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dfm::ops::cuda
