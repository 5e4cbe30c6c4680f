#include "dfm/ops/modulate.h"

#include <ATen/Parallel.h>

#include "ops/numeric_jacobian.h"
#include "ops/references.h"
#include "support/tolerance.h"

namespace dfm::ops {
namespace {

using test::Inputs;
using test::random_tensor;

const Segments& segments() {
  static const Segments made = Segments::from_lengths({40, 0, 3, 1});
  return made;
}
constexpr std::int64_t kTokens = 44, kPadding = 2, kWidth = 24;

// x, and two modulation tensors that are views with a distance between their rows.
Inputs inputs(at::ScalarType dtype) {
  const at::Tensor modulation = random_tensor({4, 3, kWidth}, dtype, 2);
  return {random_tensor({kTokens + kPadding, kWidth}, dtype, 1) * 3 + 1, modulation.select(1, 0),
          modulation.select(1, 2)};
}

at::Tensor norm(const Inputs& x) { return norm_modulate(x[0], x[1], x[2], segments(), 1e-5); }
at::Tensor norm_reference(const Inputs& x) { return test::norm_modulate_reference(x[0], x[1], x[2], segments(), 1e-5); }
at::Tensor gate(const Inputs& x) { return gate_residual(x[0], x[1], x[2], segments()); }
at::Tensor gate_reference(const Inputs& x) { return test::gate_residual_reference(x[0], x[1], x[2], segments()); }
Inputs gate_inputs(at::ScalarType dtype) {
  return {random_tensor({kTokens + kPadding, kWidth}, dtype, 1), random_tensor({4, kWidth}, dtype, 2),
          random_tensor({kTokens + kPadding, kWidth}, dtype, 3)};
}

void expect_same(const test::Operation& op, const test::Operation& reference, const Inputs& exact,
                 at::ScalarType dtype) {
  Inputs rounded;
  for (const at::Tensor& input : exact) rounded.push_back(input.to(dtype));
  const double tolerance = dtype == at::kBFloat16 ? 1e-2 : test::tolerance(dtype).forward;
  const at::Tensor got = op(rounded), want = reference(exact);
  EXPECT_EQ(got.scalar_type(), dtype);
  EXPECT_LT(test::relative_error(got, want), tolerance);
  const at::Tensor cotangent = random_tensor(got.sizes(), at::kDouble, 9);
  const Inputs found = test::gradients(op, rounded, cotangent.to(dtype));
  const Inputs wanted = test::gradients(reference, exact, cotangent);
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT(test::relative_error(found[i], wanted[i]), tolerance) << "gradient " << i;
  }
}

TEST(NormModulate, GradientsAreThoseOfItsValues) { test::expect_gradients_match(norm, inputs(at::kDouble), 1e-6); }
TEST(GateResidual, GradientsAreThoseOfItsValues) { test::expect_gradients_match(gate, gate_inputs(at::kDouble)); }

TEST(NormModulate, EqualsLayerNormThenModulationInEachDtype) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(c10::toString(dtype));
    Inputs exact;
    for (const at::Tensor& input : inputs(dtype)) exact.push_back(input.to(at::kDouble));
    expect_same(norm, norm_reference, exact, dtype);
  }
}

TEST(GateResidual, EqualsItsFormulaInEachDtype) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(c10::toString(dtype));
    Inputs exact;
    for (const at::Tensor& input : gate_inputs(dtype)) exact.push_back(input.to(at::kDouble));
    expect_same(gate, gate_reference, exact, dtype);
  }
}

TEST(NormModulate, WhatIsInPaddingRowsHasNoInfluence) {
  Inputs x = inputs(at::kFloat);
  const at::Tensor before = norm(x);
  const Inputs gradients = test::gradients(norm, x, at::ones_like(before));
  x[0].narrow(0, kTokens, kPadding).fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(at::equal(norm(x), before));
  EXPECT_EQ(before.narrow(0, kTokens, kPadding).abs().max().item<float>(), 0);
  const Inputs again = test::gradients(norm, x, at::ones_like(before));
  for (std::size_t i = 0; i < again.size(); ++i) EXPECT_TRUE(at::equal(again[i], gradients[i])) << i;
}

TEST(NormModulate, DoesNotDependOnTheNumberOfThreads) {
  const Segments many = Segments::from_lengths({700, 300, 24});
  const at::Tensor x = random_tensor({1024, 64}, at::kFloat, 1);
  const at::Tensor shift = random_tensor({3, 64}, at::kFloat, 2), scale = random_tensor({3, 64}, at::kFloat, 3);
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    const auto op = [&](const Inputs& in) { return norm_modulate(in[0], in[1], in[2], many, 1e-5); };
    Inputs results = test::gradients(op, {x, shift, scale}, x);
    results.push_back(op({x, shift, scale}));
    return results;
  };
  const int threads = at::get_num_threads();
  const Inputs one = run(1), three = run(3);
  at::set_num_threads(threads);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], three[i])) << i;
}

}  // namespace
}  // namespace dfm::ops
