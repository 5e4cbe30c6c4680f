// Compiled several times, with DFM_SIMD naming the instruction set. Nothing from the standard library's templates may
// be used here: the linker would keep one copy of them, perhaps one that this machine cannot run.
#include "ops/cpu_kernels.h"

#include <math.h>

#define DFM_SIMD_NAME2(name) cpu_kernels_##name
#define DFM_SIMD_NAME(name) DFM_SIMD_NAME2(name)

namespace dfm::ops {
namespace {

template <typename T>
void norm_modulate(const T* x, const T* shift, const T* scale, T* out, T* mean, T* rstd, std::int64_t rows,
                   std::int64_t width, double eps) {
  for (std::int64_t row = 0; row < rows; ++row, x += width, out += width) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < width; ++i) sum += x[i];
    const T center = sum / static_cast<T>(width);
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = 0; i < width; ++i) squares += (x[i] - center) * (x[i] - center);
    const T inverse = T{1} / sqrt(squares / static_cast<T>(width) + static_cast<T>(eps));
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) out[i] = (x[i] - center) * inverse * (T{1} + scale[i]) + shift[i];
    mean[row] = center;
    rstd[row] = inverse;
  }
}

template <typename T>
void norm_modulate_backward(const T* grad_out, const T* x, const T* scale, const T* mean, const T* rstd, T* grad_x,
                            T* grad_shift, T* grad_scale, std::int64_t rows, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) grad_shift[i] = grad_scale[i] = 0;
  for (std::int64_t row = 0; row < rows; ++row, x += width, grad_out += width, grad_x += width) {
    const T center = mean[row];
    const T inverse = rstd[row];
    T sum = 0;
    T dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (std::int64_t i = 0; i < width; ++i) {
      const T normed = (x[i] - center) * inverse;
      const T grad = grad_out[i] * (T{1} + scale[i]);
      sum += grad;
      dot += grad * normed;
      grad_shift[i] += grad_out[i];
      grad_scale[i] += grad_out[i] * normed;
    }
    sum /= static_cast<T>(width);
    dot /= static_cast<T>(width);
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      const T normed = (x[i] - center) * inverse;
      grad_x[i] = inverse * (grad_out[i] * (T{1} + scale[i]) - sum - normed * dot);
    }
  }
}

template <typename T>
void gate_residual(const T* x, const T* gate, const T* branch, T* out, std::int64_t rows, std::int64_t width) {
  for (std::int64_t row = 0; row < rows; ++row, x += width, branch += width, out += width) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) out[i] = x[i] + gate[i] * branch[i];
  }
}

template <typename T>
void gate_residual_backward(const T* grad_out, const T* gate, const T* branch, T* grad_branch, T* grad_gate,
                            std::int64_t rows, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) grad_gate[i] = 0;
  for (std::int64_t row = 0; row < rows; ++row, grad_out += width, branch += width, grad_branch += width) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) {
      grad_branch[i] = grad_out[i] * gate[i];
      grad_gate[i] += grad_out[i] * branch[i];
    }
  }
}

template <typename T>
void head_norm(const T* x, const T* weight, T* out, T* rstd, std::int64_t rows, std::int64_t heads, std::int64_t d,
               std::int64_t stride, std::int64_t head_stride, double eps) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head, out += d, ++rstd) {
      const T* vector = x + row * stride + head * head_stride;
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t i = 0; i < d; ++i) squares += vector[i] * vector[i];
      const T inverse = T{1} / sqrt(squares / static_cast<T>(d) + static_cast<T>(eps));
#pragma omp simd
      for (std::int64_t i = 0; i < d; ++i) out[i] = vector[i] * inverse * weight[i];
      *rstd = inverse;
    }
  }
}

template <typename T>
void head_norm_backward(const T* grad_out, const T* x, const T* weight, const T* rstd, T* grad_x, T* grad_weight,
                        std::int64_t rows, std::int64_t heads, std::int64_t d, std::int64_t stride,
                        std::int64_t head_stride) {
  for (std::int64_t i = 0; i < d; ++i) grad_weight[i] = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head, grad_out += d, ++rstd) {
      const std::int64_t at = row * stride + head * head_stride;
      const T inverse = *rstd;
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (std::int64_t i = 0; i < d; ++i) {
        const T product = grad_out[i] * x[at + i] * inverse;
        grad_weight[i] += product;
        dot += product * weight[i];
      }
      dot *= inverse / static_cast<T>(d);
#pragma omp simd
      for (std::int64_t i = 0; i < d; ++i) grad_x[at + i] = inverse * (grad_out[i] * weight[i] - x[at + i] * dot);
    }
  }
}

template <typename T>
void adamw(T* master, const T* gradient, T* exp_avg, T* exp_avg_sq, const typename CpuKernels<T>::Adamw& options,
           std::int64_t size) {
  const typename CpuKernels<T>::Adamw o = options;
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) {
    const T grad = gradient[i] * o.gradient_scale;
    const T average = o.beta1 * exp_avg[i] + (T{1} - o.beta1) * grad;
    const T square = o.beta2 * exp_avg_sq[i] + (T{1} - o.beta2) * grad * grad;
    exp_avg[i] = average;
    exp_avg_sq[i] = square;
    master[i] =
        master[i] * (T{1} - o.lr_decay) - o.step_size * average / (sqrt(square) * o.inverse_root_correction + o.eps);
  }
}

template <typename T>
double sum_of_squares(const T* values, std::int64_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return sum;
}

template <typename T>
constexpr CpuKernels<T> kTable{norm_modulate<T>, norm_modulate_backward<T>, gate_residual<T>, gate_residual_backward<T>,
                               head_norm<T>,     head_norm_backward<T>,     adamw<T>,         sum_of_squares<T>};

}  // namespace

const CpuKernels<float>& DFM_SIMD_NAME(DFM_SIMD)(float /*of*/) { return kTable<float>; }
const CpuKernels<double>& DFM_SIMD_NAME(DFM_SIMD)(double /*of*/) { return kTable<double>; }

}  // namespace dfm::ops
