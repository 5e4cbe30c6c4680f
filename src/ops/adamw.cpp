#include "dfm/ops/adamw.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dfm/base/error.h"
#include "ops/cpu_kernels.h"
#include "ops/cuda_kernels.h"
#include "ops/parallel_for.h"

namespace dfm::ops {
namespace {

// The step's numbers in the form that the loops use them.
template <typename Options>
Options step_options(const AdamwOptions& options, double weight_decay) {
  const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(options.step));
  const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(options.step));
  Options result;
  using T = decltype(result.eps);
  result.lr_decay = static_cast<T>(options.lr * weight_decay);
  result.beta1 = static_cast<T>(options.beta1);
  result.beta2 = static_cast<T>(options.beta2);
  result.step_size = static_cast<T>(options.lr / correction1);
  result.inverse_root_correction = static_cast<T>(1 / std::sqrt(correction2));
  result.eps = static_cast<T>(options.eps);
  result.gradient_scale = static_cast<T>(options.gradient_scale);
  return result;
}

void check(const AdamwTensor& tensor) {
  const at::Tensor& master = tensor.master;
  const auto fits = [&](const at::Tensor& other, bool same_dtype) {
    return other.defined() && other.is_contiguous() && other.numel() == master.numel() &&
           other.device() == master.device() && (!same_dtype || other.scalar_type() == master.scalar_type());
  };
  if (!fits(master, true) || (master.scalar_type() != at::kFloat && master.scalar_type() != at::kDouble) ||
      !fits(tensor.gradient, true) || !fits(tensor.exp_avg, true) || !fits(tensor.exp_avg_sq, true) ||
      (tensor.compute.defined() && !fits(tensor.compute, false))) {
    throw InternalError("adamw_step: got tensors that differ in size, dtype or device, want contiguous ones alike");
  }
}

// The whole work as one list of chunks, so that small tensors cost no barrier of their own.
struct Chunk {
  std::size_t tensor;
  std::int64_t begin, end;
};
std::vector<Chunk> chunks_of(const std::vector<std::int64_t>& sizes) {
  constexpr std::int64_t kChunk = 16384;
  std::vector<Chunk> chunks;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    for (std::int64_t begin = 0; begin < sizes[i]; begin += kChunk) {
      chunks.push_back({i, begin, std::min(begin + kChunk, sizes[i])});
    }
  }
  return chunks;
}

template <typename T>
void step_on_cpu(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options) {
  struct Pointers {
    T *master, *exp_avg, *exp_avg_sq, *same_copy;
    const T* gradient;
    c10::BFloat16* bfloat16_copy;
    typename CpuKernels<T>::Adamw options;
  };
  std::vector<Pointers> pointers;
  std::vector<std::int64_t> sizes;
  for (const AdamwTensor& tensor : tensors) {
    const at::Tensor& copy = tensor.compute;
    pointers.push_back(
        {tensor.master.data_ptr<T>(), tensor.exp_avg.data_ptr<T>(), tensor.exp_avg_sq.data_ptr<T>(),
         copy.defined() && copy.scalar_type() == tensor.master.scalar_type() ? copy.data_ptr<T>() : nullptr,
         tensor.gradient.const_data_ptr<T>(),
         copy.defined() && copy.scalar_type() == at::kBFloat16 ? copy.data_ptr<c10::BFloat16>() : nullptr,
         step_options<typename CpuKernels<T>::Adamw>(options, tensor.weight_decay)});
    sizes.push_back(tensor.master.numel());
  }
  const std::vector<Chunk> chunks = chunks_of(sizes);
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  parallel_for(static_cast<std::int64_t>(chunks.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Chunk& chunk = chunks[static_cast<std::size_t>(i)];
      const Pointers& p = pointers[chunk.tensor];
      kernels.adamw(p.master + chunk.begin, p.gradient + chunk.begin, p.exp_avg + chunk.begin,
                    p.exp_avg_sq + chunk.begin, p.options, chunk.end - chunk.begin);
      if (p.same_copy != nullptr) std::copy(p.master + chunk.begin, p.master + chunk.end, p.same_copy + chunk.begin);
      if (p.bfloat16_copy != nullptr) {
        std::transform(p.master + chunk.begin, p.master + chunk.end, p.bfloat16_copy + chunk.begin,
                       [](T value) { return c10::BFloat16(static_cast<float>(value)); });
      }
    }
  });
}

// ATen's operations: any device and dtype.
void step_by_aten(const AdamwTensor& tensor, const AdamwOptions& options) {
  struct Double {
    double lr_decay, beta1, beta2, step_size, inverse_root_correction, eps, gradient_scale;
  };
  const auto o = step_options<Double>(options, tensor.weight_decay);
  const at::Tensor gradient = tensor.gradient * o.gradient_scale;
  tensor.exp_avg.mul_(o.beta1).add_(gradient, 1 - o.beta1);
  tensor.exp_avg_sq.mul_(o.beta2).addcmul_(gradient, gradient, 1 - o.beta2);
  const at::Tensor denominator = tensor.exp_avg_sq.sqrt().mul_(o.inverse_root_correction).add_(o.eps);
  tensor.master.mul_(1 - o.lr_decay).addcdiv_(tensor.exp_avg, denominator, -o.step_size);
  if (tensor.compute.defined()) tensor.compute.copy_(tensor.master);
}

void step_on_cuda(const CudaKernels& kernels, const AdamwTensor& tensor, const AdamwOptions& options) {
  const bool fits = tensor.compute.defined() &&
                    (tensor.compute.scalar_type() == at::kBFloat16 || tensor.compute.scalar_type() == at::kFloat);
  kernels.adamw(tensor.master.data_ptr<float>(), tensor.gradient.const_data_ptr<float>(),
                tensor.exp_avg.data_ptr<float>(), tensor.exp_avg_sq.data_ptr<float>(),
                fits ? tensor.compute.data_ptr() : nullptr,
                fits && tensor.compute.scalar_type() == at::kBFloat16 ? CudaType::kBfloat16 : CudaType::kFloat,
                step_options<CudaAdamw>(options, tensor.weight_decay), tensor.master.numel());
  if (tensor.compute.defined() && !fits) tensor.compute.copy_(tensor.master);
}

template <typename T>
double sum_on_cpu(const std::vector<at::Tensor>& tensors) {
  std::vector<std::int64_t> sizes;
  for (const at::Tensor& tensor : tensors) sizes.push_back(tensor.numel());
  const std::vector<Chunk> chunks = chunks_of(sizes);
  std::vector<double> partial(chunks.size());
  const CpuKernels<T>& kernels = cpu_kernels<T>();
  parallel_for(static_cast<std::int64_t>(chunks.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const Chunk& chunk = chunks[i];
      partial[i] =
          kernels.sum_of_squares(tensors[chunk.tensor].const_data_ptr<T>() + chunk.begin, chunk.end - chunk.begin);
    }
  });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

bool all_on_cpu(const std::vector<at::Tensor>& tensors, at::ScalarType dtype) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const at::Tensor& tensor) {
    return tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype;
  });
}

}  // namespace

void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwOptions& options) {
  const c10::AutoGradMode no_grad(false);
  std::vector<AdamwTensor> floats, doubles;
  const CudaKernels* kernels = cuda_kernels();
  for (const AdamwTensor& tensor : tensors) {
    check(tensor);
    const bool is_float = tensor.master.scalar_type() == at::kFloat;
    const bool copy_fits = !tensor.compute.defined() || tensor.compute.scalar_type() == at::kBFloat16 ||
                           tensor.compute.scalar_type() == tensor.master.scalar_type();
    if (tensor.master.is_cpu() && copy_fits) {
      (is_float ? floats : doubles).push_back(tensor);
    } else if (tensor.master.is_cuda() && is_float && kernels != nullptr) {
      step_on_cuda(*kernels, tensor, options);
    } else {
      step_by_aten(tensor, options);
    }
  }
  if (!floats.empty()) step_on_cpu<float>(floats, options);
  if (!doubles.empty()) step_on_cpu<double>(doubles, options);
}

double sum_of_squares(const std::vector<at::Tensor>& tensors) {
  if (tensors.empty()) return 0;
  const c10::AutoGradMode no_grad(false);
  if (all_on_cpu(tensors, at::kFloat)) return sum_on_cpu<float>(tensors);
  if (all_on_cpu(tensors, at::kDouble)) return sum_on_cpu<double>(tensors);
  std::vector<at::Tensor> sums;
  for (const at::Tensor& tensor : tensors) {
    sums.push_back(at::linalg_vector_norm(tensor, 2, std::nullopt, false, at::kDouble).square());
  }
  return at::stack(sums).sum().item<double>();
}

}  // namespace dfm::ops
