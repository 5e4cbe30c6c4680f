// norm_modulate and gate_residual: one block of threads a row forward; backward also sums over the rows of each segment
// in two passes, so that the result does not depend on the order in which blocks run.
#include "ops/cuda/launch.h"

namespace dfm::ops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32;  // of a block that sums over rows: kColumns x kRowLanes threads
constexpr int kRowLanes = 8;

// The segment of a row; num_segments for padding.
__device__ std::int64_t segment_of(const CudaRow& row, std::int64_t index) {
  std::int64_t low = 0, high = row.num_segments;  // cu_seqlens[low] <= index < cu_seqlens[high], where that exists
  if (index >= row.cu_seqlens[high]) return high;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (row.cu_seqlens[middle] <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Sums over the block; every thread gets the results. `scratch` holds 2 x 32 floats. Ends with a barrier, so that the
// scratch may be used again.
__device__ float2 block_sum(float2 value, float2* scratch) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value.x += __shfl_xor_sync(0xFFFFFFFFU, value.x, offset);
    value.y += __shfl_xor_sync(0xFFFFFFFFU, value.y, offset);
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float2 total = make_float2(0, 0);
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
    total.x += scratch[warp].x;
    total.y += scratch[warp].y;
  }
  __syncthreads();
  return total;
}

template <typename T>
__global__ void norm_modulate_kernel(CudaRow row, const T* x, const T* shift, const T* scale, T* out, float* mean,
                                     float* rstd, float eps) {
  __shared__ float2 scratch[32];
  const std::int64_t index = blockIdx.x;
  const std::int64_t segment = segment_of(row, index);
  x += index * row.width;
  out += index * row.width;
  if (segment == row.num_segments) {
    for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) out[i] = narrowed<T>(0);
    if (threadIdx.x == 0) mean[index] = rstd[index] = 0;
    return;
  }
  float2 sums = make_float2(0, 0);
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) sums.x += widen(x[i]);
  const float center = block_sum(sums, scratch).x / static_cast<float>(row.width);
  sums = make_float2(0, 0);
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    const float difference = widen(x[i]) - center;
    sums.x += difference * difference;
  }
  const float inverse = rsqrtf(block_sum(sums, scratch).x / static_cast<float>(row.width) + eps);
  shift += segment * row.stride;
  scale += segment * row.stride;
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    out[i] = narrowed<T>((widen(x[i]) - center) * inverse * (1.0F + widen(scale[i])) + widen(shift[i]));
  }
  if (threadIdx.x == 0) {
    mean[index] = center;
    rstd[index] = inverse;
  }
}

template <typename T>
__global__ void norm_backward_kernel(CudaRow row, const T* grad_out, const T* x, const T* scale, const float* mean,
                                     const float* rstd, T* grad_x) {
  __shared__ float2 scratch[32];
  const std::int64_t index = blockIdx.x;
  const std::int64_t segment = segment_of(row, index);
  grad_out += index * row.width;
  x += index * row.width;
  grad_x += index * row.width;
  if (segment == row.num_segments) {
    for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) grad_x[i] = narrowed<T>(0);
    return;
  }
  scale += segment * row.stride;
  const float center = mean[index];
  const float inverse = rstd[index];
  float2 sums = make_float2(0, 0);
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    const float inner = widen(grad_out[i]) * (1.0F + widen(scale[i]));
    sums.x += inner;
    sums.y += inner * (widen(x[i]) - center) * inverse;
  }
  sums = block_sum(sums, scratch);
  sums.x /= static_cast<float>(row.width);
  sums.y /= static_cast<float>(row.width);
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    const float normed = (widen(x[i]) - center) * inverse;
    const float inner = widen(grad_out[i]) * (1.0F + widen(scale[i]));
    grad_x[i] = narrowed<T>(inverse * (inner - sums.x - normed * sums.y));
  }
}

// First pass over a block of rows of one segment: column sums of grad and of grad * other. `mean` null: other is x
// itself, else it is the normalised x. Grid: columns / kColumns, row blocks, segments.
template <typename T>
__global__ void partial_sums_kernel(CudaRow row, const T* grad_out, const T* x, const float* mean, const float* rstd,
                                    float* partial) {
  __shared__ float2 scratch[kRowLanes][kColumns];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const std::int64_t begin = row.cu_seqlens[blockIdx.z] + static_cast<std::int64_t>(blockIdx.y) * kCudaRowsPerBlock;
  const std::int64_t segment_end = row.cu_seqlens[blockIdx.z + 1];
  const std::int64_t end = begin + kCudaRowsPerBlock < segment_end ? begin + kCudaRowsPerBlock : segment_end;
  float2 sums = make_float2(0, 0);
  if (column < row.width) {
    for (std::int64_t index = begin + threadIdx.y; index < end; index += kRowLanes) {
      const float grad = widen(grad_out[index * row.width + column]);
      float other = widen(x[index * row.width + column]);
      if (mean != nullptr) other = (other - mean[index]) * rstd[index];
      sums.x += grad;
      sums.y += grad * other;
    }
  }
  scratch[threadIdx.y][threadIdx.x] = sums;
  __syncthreads();
  if (threadIdx.y != 0 || column >= row.width) return;
  for (int lane = 1; lane < kRowLanes; ++lane) {
    sums.x += scratch[lane][threadIdx.x].x;
    sums.y += scratch[lane][threadIdx.x].y;
  }
  float* const target =
      partial + 2 * ((static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * row.width + column);
  target[0] = sums.x;
  target[1] = sums.y;
}

// Second pass: over the row blocks of a segment, in order. `sum` may be null.
__global__ void total_sums_kernel(CudaRow row, std::int64_t num_row_blocks, const float* partial, float* sum,
                                  float* dot) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t segment = blockIdx.y;
  if (column >= row.width) return;
  float2 total = make_float2(0, 0);
  for (std::int64_t block = 0; block < num_row_blocks; ++block) {
    const float* const source = partial + 2 * ((segment * num_row_blocks + block) * row.width + column);
    total.x += source[0];
    total.y += source[1];
  }
  if (sum != nullptr) sum[segment * row.width + column] = total.x;
  dot[segment * row.width + column] = total.y;
}

template <typename T>
void segment_sums(const CudaRow& row, const T* grad_out, const T* x, const float* mean, const float* rstd,
                  float* partial, float* sum, float* dot) {
  if (row.max_length == 0 || row.num_segments == 0) return;
  const unsigned row_blocks = blocks_for(row.max_length, kCudaRowsPerBlock);
  const auto segments = static_cast<unsigned>(row.num_segments);
  partial_sums_kernel<<<dim3(blocks_for(row.width, kColumns), row_blocks, segments), dim3(kColumns, kRowLanes), 0,
                        stream()>>>(row, grad_out, x, mean, rstd, partial);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  total_sums_kernel<<<dim3(blocks_for(row.width, kThreads), segments), kThreads, 0, stream()>>>(row, row_blocks,
                                                                                                partial, sum, dot);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Padding rows of x pass through.
template <typename T>
__global__ void gate_residual_kernel(CudaRow row, const T* x, const T* gate, const T* branch, T* out) {
  const std::int64_t index = blockIdx.x;
  const std::int64_t segment = segment_of(row, index);
  const bool is_padding = segment == row.num_segments;
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    const std::int64_t at = index * row.width + i;
    out[at] =
        is_padding ? x[at] : narrowed<T>(widen(x[at]) + widen(gate[segment * row.stride + i]) * widen(branch[at]));
  }
}

template <typename T>
__global__ void gate_backward_kernel(CudaRow row, const T* grad_out, const T* gate, T* grad_branch) {
  const std::int64_t index = blockIdx.x;
  const std::int64_t segment = segment_of(row, index);
  const bool is_padding = segment == row.num_segments;
  for (std::int64_t i = threadIdx.x; i < row.width; i += blockDim.x) {
    const std::int64_t at = index * row.width + i;
    grad_branch[at] = narrowed<T>(is_padding ? 0.0F : widen(grad_out[at]) * widen(gate[segment * row.stride + i]));
  }
}

// Calls body with a pointer type for `type`.
template <typename Body>
void with_type(CudaType type, const Body& body) {
  if (type == CudaType::kFloat) {
    body(float{});
  } else {
    body(__nv_bfloat16{});
  }
}

}  // namespace

void norm_modulate(CudaType type, const CudaRow& row, const void* x, const void* shift, const void* scale, void* out,
                   float* mean, float* rstd, double eps) {
  if (row.num_rows == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    norm_modulate_kernel<<<static_cast<unsigned>(row.num_rows), kThreads, 0, stream()>>>(
        row, static_cast<const T*>(x), static_cast<const T*>(shift), static_cast<const T*>(scale), static_cast<T*>(out),
        mean, rstd, static_cast<float>(eps));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void norm_modulate_backward(CudaType type, const CudaRow& row, const void* grad_out, const void* x, const void* scale,
                            const float* mean, const float* rstd, void* grad_x, float* grad_shift, float* grad_scale,
                            float* partial) {
  if (row.num_rows == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    norm_backward_kernel<<<static_cast<unsigned>(row.num_rows), kThreads, 0, stream()>>>(
        row, static_cast<const T*>(grad_out), static_cast<const T*>(x), static_cast<const T*>(scale), mean, rstd,
        static_cast<T*>(grad_x));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    segment_sums(row, static_cast<const T*>(grad_out), static_cast<const T*>(x), mean, rstd, partial, grad_shift,
                 grad_scale);
  });
}

void gate_residual(CudaType type, const CudaRow& row, const void* x, const void* gate, const void* branch, void* out) {
  if (row.num_rows == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    gate_residual_kernel<<<static_cast<unsigned>(row.num_rows), kThreads, 0, stream()>>>(
        row, static_cast<const T*>(x), static_cast<const T*>(gate), static_cast<const T*>(branch),
        static_cast<T*>(out));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void gate_residual_backward(CudaType type, const CudaRow& row, const void* grad_out, const void* gate,
                            const void* branch, void* grad_branch, float* grad_gate, float* partial) {
  if (row.num_rows == 0) return;
  with_type(type, [&](auto zero) {
    using T = decltype(zero);
    gate_backward_kernel<<<static_cast<unsigned>(row.num_rows), kThreads, 0, stream()>>>(
        row, static_cast<const T*>(grad_out), static_cast<const T*>(gate), static_cast<T*>(grad_branch));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    segment_sums(row, static_cast<const T*>(grad_out), static_cast<const T*>(branch), nullptr, nullptr, partial,
                 static_cast<float*>(nullptr), grad_gate);
  });
}

}  // namespace dfm::ops::cuda
