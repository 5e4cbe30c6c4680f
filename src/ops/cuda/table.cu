#include "ops/cuda/launch.h"

// The one name that dfm looks up in this library.
extern "C" __attribute__((visibility("default"))) const dfm::ops::CudaKernels* dfm_cuda_kernels() {
  namespace cuda = dfm::ops::cuda;
  static const dfm::ops::CudaKernels table{dfm::ops::CudaKernels::kVersion,
                                           cuda::philox_normal,
                                           cuda::adamw,
                                           cuda::norm_modulate,
                                           cuda::norm_modulate_backward,
                                           cuda::gate_residual,
                                           cuda::gate_residual_backward,
                                           cuda::frame_moments,
                                           cuda::frame_normalise,
                                           cuda::frame_add};
  return &table;
}
