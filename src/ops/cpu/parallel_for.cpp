// Compiled with -fopenmp and linked with LibTorch's own libgomp: one pool of threads in the process.
#include "ops/parallel_for.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <exception>

namespace dfm::ops {
namespace {

// A thread that waits for work by spinning takes its core from any other process: with one beside it, two threads are
// slower than one. libgomp reads how to wait when it is loaded, so the default is set before that: functions in this
// section run before the constructors of shared libraries. What the user has set stays.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
void wait_passively(int /*argc*/, char** /*argv*/, char** /*environment*/) {
  ::setenv("OMP_WAIT_POLICY", "passive", 0);
}
__attribute__((section(".preinit_array"), used)) void (*const kWaitPassively)(int, char**, char**) = wait_passively;
#endif

}  // namespace

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
