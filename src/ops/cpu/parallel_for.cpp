// Compiled with -fopenmp and linked with LibTorch's own libgomp: one pool of threads in the process.
#include "ops/parallel_for.h"

#include <omp.h>

#include <algorithm>
#include <exception>

namespace dfm::ops {

void parallel_for(std::int64_t size, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (size <= 0) return;
  const std::int64_t most = std::max<std::int64_t>(1, size / std::max<std::int64_t>(1, grain));
  if (most == 1 || omp_get_max_threads() == 1 || omp_in_parallel() != 0) {
    body(0, size);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel
  {
    const std::int64_t workers = std::min<std::int64_t>(omp_get_num_threads(), most);
    const std::int64_t worker = omp_get_thread_num();
    if (worker < workers) {
      try {
        body(size * worker / workers, size * (worker + 1) / workers);
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace dfm::ops
