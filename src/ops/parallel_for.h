#pragma once
// at::parallel_for runs on one thread in code that is compiled without OpenMP, silently, and OpenMP flags do not go
// with the shared precompiled header. So the loop over threads lives in one file of its own.
#include <cstdint>
#include <functional>

namespace dfm::ops {

// Calls body(begin, end) for ranges of at least `grain` items that cover [0, size), on the threads that LibTorch uses.
// Which ranges depends on the number of threads: results must not.
void parallel_for(std::int64_t size, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace dfm::ops
