#pragma once
// What libdfm_cuda offers: found by name after the library is loaded, so that dfm starts on machines without a driver.
// All pointers are device memory; work goes to LibTorch's current stream. Layouts as in cpu_kernels.h, but for a whole
// packed row: cu_seqlens has num_segments + 1 values, rows after the last one are padding (results zero; gate_residual
// hands x through).
#include <cstdint>

namespace dfm::ops {

enum class CudaType { kFloat, kBfloat16 };

struct CudaRow {
  const std::int32_t* cu_seqlens;
  std::int64_t num_segments, max_length;
  std::int64_t num_rows;  // of the tensors, padding included
  std::int64_t width;
  std::int64_t stride;  // between the rows of the modulation tensors
};

struct CudaAdamw {
  float lr_decay, beta1, beta2, step_size, inverse_root_correction, eps, gradient_scale;
};

// Frames of channels-last pictures: `pixels` x `width` values in one run each, `stride` values apart.
struct CudaFrames {
  std::int64_t num_frames, pixels, width, stride;
};
// Blocks that share a frame, at most. A frame has fewer than 2^32 values.
inline constexpr std::int64_t kCudaFrameBlocks = 1024;
inline std::int64_t cuda_frame_partial_size(const CudaFrames& frames) {
  return 2 * kCudaFrameBlocks * frames.num_frames;
}

struct CudaKernels {
  static constexpr int kVersion = 2;
  int version;
  void (*philox_normal)(float* out, std::int64_t size, std::uint64_t seed, std::uint64_t n, std::uint32_t purpose,
                        std::uint64_t first);
  // compute: null, or memory of `compute_type` that receives the new values.
  void (*adamw)(float* master, const float* gradient, float* exp_avg, float* exp_avg_sq, void* compute,
                CudaType compute_type, const CudaAdamw& options, std::int64_t size);
  void (*norm_modulate)(CudaType type, const CudaRow& row, const void* x, const void* shift, const void* scale,
                        void* out, float* mean, float* rstd, double eps);
  // grad_shift, grad_scale: float [num_segments, width]; partial: float [norm_partial_size(row)] of scratch.
  void (*norm_modulate_backward)(CudaType type, const CudaRow& row, const void* grad_out, const void* x,
                                 const void* scale, const float* mean, const float* rstd, void* grad_x,
                                 float* grad_shift, float* grad_scale, float* partial);
  void (*gate_residual)(CudaType type, const CudaRow& row, const void* x, const void* gate, const void* branch,
                        void* out);
  void (*gate_residual_backward)(CudaType type, const CudaRow& row, const void* grad_out, const void* gate,
                                 const void* branch, void* grad_branch, float* grad_gate, float* partial);
  // bias, weight, shift: [width], a null bias is none; partial: double [cuda_frame_partial_size(frames)] of scratch.
  void (*frame_moments)(CudaType type, const CudaFrames& frames, const void* x, const float* bias, float* mean,
                        float* rstd, double* partial, double eps);
  void (*frame_normalise)(CudaType type, const CudaFrames& frames, const void* x, const float* bias, const float* mean,
                          const float* rstd, const float* weight, const float* shift, bool silu, void* out);
  void (*frame_add)(CudaType type, const CudaFrames& frames, void* target, const void* y, std::int64_t y_stride,
                    const float* bias);
};

// Floats of scratch for a backward: two sums for each column of each block of rows of each segment.
inline constexpr std::int64_t kCudaRowsPerBlock = 256;
inline std::int64_t cuda_partial_size(const CudaRow& row) {
  return 2 * row.num_segments * ((row.max_length + kCudaRowsPerBlock - 1) / kCudaRowsPerBlock) * row.width;
}

// Of the loaded library, or null (device.cpp).
const CudaKernels* cuda_kernels();

}  // namespace dfm::ops
