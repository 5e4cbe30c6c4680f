#pragma once
// Which device a run computes on. dfm links only the CPU half of LibTorch; the CUDA half is loaded here, once, where a
// driver is, together with dfm's own kernels (libdfm_cuda) when the build has them.
#include <ATen/core/Tensor.h>

#include <string>

namespace dfm::ops {

// request: "auto" (a GPU if there is one), "cpu" or "cuda". local_rank: this process among those of its host; GPUs are
// dealt out in turn and the chosen one becomes the current device. Call it once, before the first tensor operation:
// LibTorch remembers for good that CUDA was absent. ConfigError for `cuda` without a usable GPU (and the reason).
at::Device select_device(const std::string& request, int local_rank);

// One line for people: "CPU, 2 threads" or "NVIDIA H100 80GB HBM3, dfm kernels" / "..., ATen operations only".
std::string describe_device(const at::Device& device);

// Threads of one operation on the CPU; 0: as many as this process may use (its affinity).
void set_num_threads(int threads);

// Whether libdfm_cuda is loaded. Without it ATen operations do the same work.
bool has_cuda_kernels();

}  // namespace dfm::ops
