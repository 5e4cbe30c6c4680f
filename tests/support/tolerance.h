#pragma once
// The one table of tolerances: largest difference over largest value of the reference. An override needs a comment with
// the error that was measured.
#include <ATen/ATen.h>

namespace dfm::test {

struct Tolerance {
  double forward;
  double input_gradient;
  double parameter_gradient;
};
inline Tolerance tolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return {1e-11, 1e-11, 1e-11};
    case at::kFloat:
      return {1e-5, 1e-5, 3e-5};
    default:
      return {3e-2, 3e-2, 3e-2};
  }
}

// max |got - want| / max |want|, in float64; infinite when shapes differ or anything is not finite.
inline double relative_error(const at::Tensor& got, const at::Tensor& want) {
  if (got.sizes() != want.sizes()) return std::numeric_limits<double>::infinity();
  if (want.numel() == 0) return 0;
  const at::Tensor got64 = got.detach().to(at::kCPU, at::kDouble);
  const at::Tensor want64 = want.detach().to(at::kCPU, at::kDouble);
  if (!at::isfinite(got64).all().item<bool>()) return std::numeric_limits<double>::infinity();
  const double scale = want64.abs().max().item<double>();
  const double difference = (got64 - want64).abs().max().item<double>();
  return scale > 0 ? difference / scale : difference;
}

}  // namespace dfm::test
