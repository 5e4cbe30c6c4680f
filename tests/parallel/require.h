#pragma once
// Checks for cases over ranks: an error ends all ranks with the message, so that none waits for the one that failed.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include "dfm/base/error.h"
#include "support/tolerance.h"

namespace dfm::test {

inline at::Tensor random_rows(at::IntArrayRef sizes, std::uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(sizes, generator, at::TensorOptions(at::kDouble));
}

inline void require(bool holds, const std::string& what) {
  if (!holds) throw InternalError("{}", what);
}

inline void require_close(const std::string& what, const at::Tensor& got, const at::Tensor& want, double tolerance) {
  const double error = relative_error(got, want);
  if (!(error <= tolerance)) {
    throw InternalError("{}: got relative error {:.3g}, want at most {:.3g}", what, error, tolerance);
  }
}

}  // namespace dfm::test
