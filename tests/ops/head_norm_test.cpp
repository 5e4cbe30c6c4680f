#include "dfm/ops/head_norm.h"

#include "ops/numeric_jacobian.h"
#include "support/errors.h"
#include "support/tolerance.h"

namespace dfm::ops {
namespace {

using test::Inputs;
using test::random_tensor;

constexpr std::int64_t kRows = 70, kHeads = 3, kSize = 5;
constexpr double kEps = 1e-5;

// q, k and v side by side, so that one tensor holds everything that has a gradient.
at::Tensor split_qkv(const Inputs& x) { return at::cat(split_heads_norm(x[0], kHeads, 3, {x[1], x[2]}, kEps), -1); }
at::Tensor reference(const Inputs& x) {
  const at::Tensor heads = x[0].view({-1, kHeads, 3, kSize});
  const auto norm = [](const at::Tensor& part, const at::Tensor& weight) {
    return part * (part.square().mean(-1, true) + kEps).rsqrt() * weight;
  };
  return at::cat({norm(heads.select(2, 0), x[1]), norm(heads.select(2, 1), x[2]), heads.select(2, 2)}, -1);
}
Inputs inputs(std::int64_t rows) {
  const at::Tensor x = random_tensor({rows, kHeads * 3 * kSize});
  x.narrow(1, 0, kSize).mul_(1e-3);  // a head so small that eps shows
  return {x, random_tensor({kSize}, at::kDouble, 2), random_tensor({kSize}, at::kDouble, 3)};
}

TEST(SplitHeadsNorm, GradientsAreThoseOfItsValues) { test::expect_gradients_match(split_qkv, inputs(4), 1e-5); }

TEST(SplitHeadsNorm, EqualsRmsNormOfQueryAndKeyHeads) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(c10::toString(dtype));
    Inputs rounded, exact;
    for (const at::Tensor& input : inputs(kRows)) {
      rounded.push_back(input.to(dtype));
      exact.push_back(rounded.back().to(at::kDouble));
    }
    const double tolerance = dtype == at::kBFloat16 ? 1e-2 : test::tolerance(dtype).forward;
    EXPECT_LT(test::relative_error(split_qkv(rounded), reference(exact)), tolerance);
    const at::Tensor cotangent = random_tensor({kRows, kHeads, 3 * kSize}, at::kDouble, 9);
    const Inputs found = test::gradients(split_qkv, rounded, cotangent.to(dtype));
    const Inputs wanted = test::gradients(reference, exact, cotangent);
    for (std::size_t i = 0; i < found.size(); ++i) {
      EXPECT_LT(test::relative_error(found[i], wanted[i]), tolerance) << "gradient " << i;
    }
  }
}

TEST(SplitHeadsNorm, PartsWithoutUseGetZeroGradients) {
  Inputs x = inputs(4);
  for (at::Tensor& input : x) input.requires_grad_(true);
  const auto parts = split_heads_norm(x[0], kHeads, 3, {x[1], x[2]}, kEps);
  const auto found = torch::autograd::grad({parts[1].sum()}, {x[0]});
  const at::Tensor heads = found[0].view({-1, kHeads, 3, kSize});
  EXPECT_EQ(heads.select(2, 0).abs().max().item<double>(), 0);
  EXPECT_EQ(heads.select(2, 2).abs().max().item<double>(), 0);
  EXPECT_GT(heads.select(2, 1).abs().max().item<double>(), 0);
}

TEST(SplitHeadsNorm, TakesNoRows) {
  const Inputs found = test::gradients(split_qkv, inputs(0), at::zeros({0, kHeads, 3 * kSize}, at::kDouble));
  EXPECT_EQ(found[1].abs().max().item<double>(), 0);
}

TEST(SplitHeadsNorm, RefusesAWidthThatDoesNotDivide) {
  EXPECT_DFM_ERROR(ExitCode::kInternal, "want a multiple of 3 heads x 3 parts",
                   split_heads_norm(at::zeros({2, 10}), 3, 3, {}, kEps));
}

}  // namespace
}  // namespace dfm::ops
