// Norm over whole frames, channels last. The sums take two passes (blocks, then one block a frame), so that the result
// does not depend on the order in which blocks run. Elements go through in vectors of 16 bytes where the width allows.
#include "ops/cuda/launch.h"

namespace dfm::ops::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T values[kVector];
};

// Sum over the block's threads, for thread 0. `scratch` holds kThreads / 32 pairs.
__device__ double2 block_sum(double2 value, double2* scratch) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value.x += __shfl_xor_sync(0xFFFFFFFFU, value.x, offset);
    value.y += __shfl_xor_sync(0xFFFFFFFFU, value.y, offset);
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double2 total = make_double2(0, 0);
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      total.x += scratch[warp].x;
      total.y += scratch[warp].y;
    }
  }
  return total;
}

// grid: (blocks of a frame, frames). partial: a pair of sums a block.
template <typename T, int kVector>
__global__ void sums_kernel(CudaFrames frames, const T* x, const float* bias, double* partial) {
  __shared__ double2 scratch[kThreads / 32];
  const std::uint32_t width = static_cast<std::uint32_t>(frames.width);
  const std::uint32_t vectors = static_cast<std::uint32_t>(frames.pixels * frames.width / kVector);
  const auto* from = reinterpret_cast<const Vector<T, kVector>*>(x + blockIdx.y * frames.stride);
  float sum = 0, squares = 0;
  for (std::uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < vectors; i += gridDim.x * kThreads) {
    const Vector<T, kVector> vector = from[i];
    const std::uint32_t channel = i * kVector % width;
    for (int j = 0; j < kVector; ++j) {
      float value = widen(vector.values[j]);
      if (bias != nullptr) value += bias[channel + j];
      sum += value;
      squares += value * value;
    }
  }
  const double2 total = block_sum(make_double2(sum, squares), scratch);
  if (threadIdx.x == 0) {
    double* to = partial + 2 * (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x);
    to[0] = total.x;
    to[1] = total.y;
  }
}

__global__ void moments_kernel(const double* partial, int blocks, double count, double eps, float* mean, float* rstd) {
  __shared__ double2 scratch[kThreads / 32];
  partial += 2 * static_cast<std::int64_t>(blockIdx.x) * blocks;
  double2 value = make_double2(0, 0);
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
    value.x += partial[2 * i];
    value.y += partial[2 * i + 1];
  }
  const double2 total = block_sum(value, scratch);
  if (threadIdx.x == 0) {
    const double center = total.x / count;
    const double variance = total.y / count - center * center;
    mean[blockIdx.x] = static_cast<float>(center);
    rstd[blockIdx.x] = static_cast<float>(1.0 / sqrt((variance > 0 ? variance : 0) + eps));
  }
}

template <typename T, int kVector>
__global__ void normalise_kernel(CudaFrames frames, const T* x, const float* bias, const float* mean, const float* rstd,
                                 const float* weight, const float* shift, bool silu, T* out) {
  const std::uint32_t width = static_cast<std::uint32_t>(frames.width);
  const std::uint32_t vectors = static_cast<std::uint32_t>(frames.pixels * frames.width / kVector);
  const auto* from = reinterpret_cast<const Vector<T, kVector>*>(x + blockIdx.y * frames.stride);
  auto* to = reinterpret_cast<Vector<T, kVector>*>(out + blockIdx.y * frames.pixels * frames.width);
  const float center = mean[blockIdx.y], inverse = rstd[blockIdx.y];
  for (std::uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < vectors; i += gridDim.x * kThreads) {
    const Vector<T, kVector> vector = from[i];
    const std::uint32_t channel = i * kVector % width;
    Vector<T, kVector> result;
    for (int j = 0; j < kVector; ++j) {
      float value = widen(vector.values[j]);
      if (bias != nullptr) value += bias[channel + j];
      value = (value - center) * inverse * weight[channel + j] + shift[channel + j];
      if (silu) value = value / (1.0F + __expf(-value));
      result.values[j] = narrowed<T>(value);
    }
    to[i] = result;
  }
}

template <typename T, int kVector>
__global__ void add_kernel(CudaFrames frames, T* target, const T* y, std::int64_t y_stride, const float* bias) {
  const std::uint32_t width = static_cast<std::uint32_t>(frames.width);
  const std::uint32_t vectors = static_cast<std::uint32_t>(frames.pixels * frames.width / kVector);
  const auto* from = reinterpret_cast<const Vector<T, kVector>*>(y + blockIdx.y * y_stride);
  auto* to = reinterpret_cast<Vector<T, kVector>*>(target + blockIdx.y * frames.stride);
  for (std::uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < vectors; i += gridDim.x * kThreads) {
    Vector<T, kVector> sum = to[i];
    const Vector<T, kVector> vector = from[i];
    const std::uint32_t channel = i * kVector % width;
    for (int j = 0; j < kVector; ++j) {
      float value = widen(sum.values[j]) + widen(vector.values[j]);
      if (bias != nullptr) value += bias[channel + j];
      sum.values[j] = narrowed<T>(value);
    }
    to[i] = sum;
  }
}

// Calls body(type tag, vector width) for what the frames allow: 16 bytes at a time, or element by element.
template <typename Body>
void for_type(CudaType type, const CudaFrames& frames, std::int64_t other_stride, const Body& body) {
  const std::int64_t vector = type == CudaType::kFloat ? 4 : 8;
  const bool fits = frames.width % vector == 0 && frames.stride % vector == 0 && other_stride % vector == 0;
  if (type == CudaType::kFloat) {
    if (fits) {
      body(float{}, std::integral_constant<int, 4>{});
    } else {
      body(float{}, std::integral_constant<int, 1>{});
    }
  } else if (fits) {
    body(__nv_bfloat16{}, std::integral_constant<int, 8>{});
  } else {
    body(__nv_bfloat16{}, std::integral_constant<int, 1>{});
  }
}

dim3 grid_for(const CudaFrames& frames, int vector) {
  const std::int64_t blocks = (frames.pixels * frames.width / vector + kThreads - 1) / kThreads;
  const std::int64_t most = kCudaFrameBlocks;
  return {static_cast<unsigned>(blocks < most ? blocks : most), static_cast<unsigned>(frames.num_frames), 1};
}

}  // namespace

void frame_moments(CudaType type, const CudaFrames& frames, const void* x, const float* bias, float* mean, float* rstd,
                   double* partial, double eps) {
  for_type(type, frames, 0, [&](auto tag, auto vector) {
    using T = decltype(tag);
    const dim3 grid = grid_for(frames, vector);
    sums_kernel<T, decltype(vector)::value>
        <<<grid, kThreads, 0, stream()>>>(frames, static_cast<const T*>(x), bias, partial);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    moments_kernel<<<grid.y, kThreads, 0, stream()>>>(
        partial, static_cast<int>(grid.x), static_cast<double>(frames.pixels * frames.width), eps, mean, rstd);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void frame_normalise(CudaType type, const CudaFrames& frames, const void* x, const float* bias, const float* mean,
                     const float* rstd, const float* weight, const float* shift, bool silu, void* out) {
  for_type(type, frames, 0, [&](auto tag, auto vector) {
    using T = decltype(tag);
    normalise_kernel<T, decltype(vector)::value><<<grid_for(frames, vector), kThreads, 0, stream()>>>(
        frames, static_cast<const T*>(x), bias, mean, rstd, weight, shift, silu, static_cast<T*>(out));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void frame_add(CudaType type, const CudaFrames& frames, void* target, const void* y, std::int64_t y_stride,
               const float* bias) {
  for_type(type, frames, y_stride, [&](auto tag, auto vector) {
    using T = decltype(tag);
    add_kernel<T, decltype(vector)::value><<<grid_for(frames, vector), kThreads, 0, stream()>>>(
        frames, static_cast<T*>(target), static_cast<const T*>(y), y_stride, bias);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace dfm::ops::cuda
