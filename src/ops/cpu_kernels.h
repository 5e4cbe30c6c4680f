#pragma once
// Fused loops for the CPU on plain pointers, one thread each. cpu/kernels.cpp is compiled once for each instruction set
// and the best that the machine has is taken at run time. All rows are dense, `stride` is the distance between the rows
// of a modulation tensor.
#include <cstdint>

namespace dfm::ops {

template <typename T>
struct CpuKernels {
  // Rows [0, rows) of one segment. out = (x - mean) rstd (1 + scale) + shift; mean and rstd are kept, one a row.
  void (*norm_modulate)(const T* x, const T* shift, const T* scale, T* out, T* mean, T* rstd, std::int64_t rows,
                        std::int64_t width, double eps);
  // grad_shift and grad_scale [width] are overwritten with the sums over these rows.
  void (*norm_modulate_backward)(const T* grad_out, const T* x, const T* scale, const T* mean, const T* rstd, T* grad_x,
                                 T* grad_shift, T* grad_scale, std::int64_t rows, std::int64_t width);
  void (*gate_residual)(const T* x, const T* gate, const T* branch, T* out, std::int64_t rows, std::int64_t width);
  void (*gate_residual_backward)(const T* grad_out, const T* gate, const T* branch, T* grad_branch, T* grad_gate,
                                 std::int64_t rows, std::int64_t width);
  // One part of every head: rows x heads vectors of width d; row stride of x and grad_x `stride`, head stride
  // `head_stride`; out and grad_out dense [rows, heads, d]; rstd [rows, heads].
  void (*head_norm)(const T* x, const T* weight, T* out, T* rstd, std::int64_t rows, std::int64_t heads, std::int64_t d,
                    std::int64_t stride, std::int64_t head_stride, double eps);
  // grad_weight [d] is overwritten with the sum over these rows.
  void (*head_norm_backward)(const T* grad_out, const T* x, const T* weight, const T* rstd, T* grad_x, T* grad_weight,
                             std::int64_t rows, std::int64_t heads, std::int64_t d, std::int64_t stride,
                             std::int64_t head_stride);
  struct Adamw {
    T lr_decay, beta1, beta2, step_size, inverse_root_correction, eps, gradient_scale;
  };
  void (*adamw)(T* master, const T* gradient, T* exp_avg, T* exp_avg_sq, const Adamw& options, std::int64_t size);
  double (*sum_of_squares)(const T* values, std::int64_t size);
};

template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace dfm::ops
