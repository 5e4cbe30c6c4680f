#include "ops/cuda/launch.h"

namespace dfm::ops::cuda {
namespace {

template <typename Copy>
__global__ void adamw_kernel(float* master, const float* gradient, float* exp_avg, float* exp_avg_sq, Copy* compute,
                             CudaAdamw o, std::int64_t size) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
    const float grad = gradient[i] * o.gradient_scale;
    const float average = o.beta1 * exp_avg[i] + (1.0F - o.beta1) * grad;
    const float square = o.beta2 * exp_avg_sq[i] + (1.0F - o.beta2) * grad * grad;
    const float value =
        master[i] * (1.0F - o.lr_decay) - o.step_size * average / (sqrtf(square) * o.inverse_root_correction + o.eps);
    exp_avg[i] = average;
    exp_avg_sq[i] = square;
    master[i] = value;
    if (compute != nullptr) compute[i] = narrowed<Copy>(value);
  }
}

}  // namespace

void adamw(float* master, const float* gradient, float* exp_avg, float* exp_avg_sq, void* compute,
           CudaType compute_type, const CudaAdamw& options, std::int64_t size) {
  if (size == 0) return;
  constexpr int kThreads = 256;
  const unsigned blocks = min(blocks_for(size, kThreads), 4096U);
  if (compute_type == CudaType::kBfloat16) {
    adamw_kernel<<<blocks, kThreads, 0, stream()>>>(master, gradient, exp_avg, exp_avg_sq,
                                                    static_cast<__nv_bfloat16*>(compute), options, size);
  } else {
    adamw_kernel<<<blocks, kThreads, 0, stream()>>>(master, gradient, exp_avg, exp_avg_sq, static_cast<float*>(compute),
                                                    options, size);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dfm::ops::cuda
