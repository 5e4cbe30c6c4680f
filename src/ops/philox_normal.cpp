#include "dfm/ops/philox_normal.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "ops/cuda_kernels.h"
#include "ops/parallel_for.h"

namespace dfm::ops {
namespace {

void fill_on_cpu(const at::Tensor& out, std::uint64_t seed, std::uint64_t n, Purpose purpose, std::uint64_t first) {
  float* const values = out.data_ptr<float>();
  constexpr std::int64_t kGrain = 4096;
  parallel_for(out.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    philox_normal(seed, n, purpose, first + static_cast<std::uint64_t>(begin),
                  {values + begin, static_cast<std::size_t>(end - begin)});
  });
}

}  // namespace

void philox_normal_(at::Tensor& out, std::uint64_t seed, std::uint64_t n, Purpose purpose, std::uint64_t first) {
  if (out.scalar_type() != at::kFloat || !out.is_contiguous()) {
    throw InternalError("philox_normal_: got a {} tensor, want a contiguous float tensor",
                        c10::toString(out.scalar_type()));
  }
  if (out.is_cpu()) {
    fill_on_cpu(out, seed, n, purpose, first);
  } else if (const CudaKernels* kernels = cuda_kernels(); kernels != nullptr && out.is_cuda()) {
    kernels->philox_normal(out.data_ptr<float>(), out.numel(), seed, n, static_cast<std::uint32_t>(purpose), first);
  } else {
    const at::Tensor host = at::empty(out.sizes(), out.options().device(at::kCPU));
    fill_on_cpu(host, seed, n, purpose, first);
    out.copy_(host);
  }
}

}  // namespace dfm::ops
