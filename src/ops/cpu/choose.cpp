#include "ops/cpu_kernels.h"

namespace dfm::ops {

#define DFM_DECLARE(name)                             \
  const CpuKernels<float>& cpu_kernels_##name(float); \
  const CpuKernels<double>& cpu_kernels_##name(double)
DFM_DECLARE(plain);
#ifdef DFM_X86
DFM_DECLARE(avx2);
DFM_DECLARE(avx512);
#endif
#undef DFM_DECLARE

template <typename T>
const CpuKernels<T>& cpu_kernels() {
  static const CpuKernels<T>& chosen = []() -> const CpuKernels<T>& {
#ifdef DFM_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      return cpu_kernels_avx512(T{});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return cpu_kernels_avx2(T{});
#endif
    return cpu_kernels_plain(T{});
  }();
  return chosen;
}
template const CpuKernels<float>& cpu_kernels();
template const CpuKernels<double>& cpu_kernels();

}  // namespace dfm::ops
