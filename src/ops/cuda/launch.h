#pragma once
// What every kernel file needs: the tables' functions, the current stream, and conversions.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>

#include "ops/cuda_kernels.h"

namespace dfm::ops::cuda {

void philox_normal(float* out, std::int64_t size, std::uint64_t seed, std::uint64_t n, std::uint32_t purpose,
                   std::uint64_t first);
void adamw(float* master, const float* gradient, float* exp_avg, float* exp_avg_sq, void* compute,
           CudaType compute_type, const CudaAdamw& options, std::int64_t size);
void norm_modulate(CudaType type, const CudaRow& row, const void* x, const void* shift, const void* scale, void* out,
                   float* mean, float* rstd, double eps);
void norm_modulate_backward(CudaType type, const CudaRow& row, const void* grad_out, const void* x, const void* scale,
                            const float* mean, const float* rstd, void* grad_x, float* grad_shift, float* grad_scale,
                            float* partial);
void gate_residual(CudaType type, const CudaRow& row, const void* x, const void* gate, const void* branch, void* out);
void gate_residual_backward(CudaType type, const CudaRow& row, const void* grad_out, const void* gate,
                            const void* branch, void* grad_branch, float* grad_gate, float* partial);
void frame_moments(CudaType type, const CudaFrames& frames, const void* x, const float* bias, float* mean, float* rstd,
                   double* partial, double eps);
void frame_normalise(CudaType type, const CudaFrames& frames, const void* x, const float* bias, const float* mean,
                     const float* rstd, const float* weight, const float* shift, bool silu, void* out);
void frame_add(CudaType type, const CudaFrames& frames, void* target, const void* y, std::int64_t y_stride,
               const float* bias);

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
template <typename T>
__device__ T narrowed(float value);
template <>
__device__ inline float narrowed<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 narrowed<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}

}  // namespace dfm::ops::cuda
