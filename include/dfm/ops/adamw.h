#pragma once
// AdamW on lists of tensors: one pass over memory that also writes the copy the model computes with.
//
//   const double norm = std::sqrt(sum_of_squares(gradients));
//   adamw_step(tensors, {.lr = lr, .step = t, .gradient_scale = clip < norm ? clip / norm : 1.0});
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dfm::ops {

// All contiguous, on one device, of the same number of elements.
struct AdamwTensor {
  at::Tensor master;      // float32 or float64, updated
  at::Tensor gradient;    // dtype of master; not changed
  at::Tensor exp_avg;     // dtype of master, updated
  at::Tensor exp_avg_sq;  // dtype of master, updated
  at::Tensor compute;     // undefined, or the tensor that receives the new values in its own dtype (bfloat16)
  double weight_decay = 0;
};

struct AdamwOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  std::int64_t step = 1;      // from 1; corrects the bias of the moments
  double gradient_scale = 1;  // gradients are multiplied by it while they are read
};

// m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p = p (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) +
// eps): Loshchilov and Hutter, arXiv 1711.05101, as in torch.optim.AdamW.
void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options);

// Sum of squares over all elements of all tensors, accumulated in float64; the same for any number of threads. Waits
// for the device.
double sum_of_squares(const std::vector<at::Tensor>& tensors);

}  // namespace dfm::ops
