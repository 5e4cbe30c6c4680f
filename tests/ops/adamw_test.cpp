#include "dfm/ops/adamw.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "ops/numeric_jacobian.h"
#include "support/errors.h"
#include "support/tolerance.h"

namespace dfm::ops {
namespace {

using test::random_tensor;

AdamwTensor state(std::int64_t size, at::ScalarType dtype, at::ScalarType copy, std::uint64_t seed) {
  const auto options = at::TensorOptions(dtype);
  return {random_tensor({size}, dtype, seed), random_tensor({size}, dtype, seed + 1), at::zeros({size}, options),
          at::zeros({size}, options),         at::zeros({size}, options.dtype(copy)), seed % 2 == 0 ? 0.1 : 0.0};
}

// The formula in double, one number at a time.
void reference_step(double& p, double g, double& m, double& v, double decay, const AdamwOptions& o) {
  g *= o.gradient_scale;
  m = o.beta1 * m + (1 - o.beta1) * g;
  v = o.beta2 * v + (1 - o.beta2) * g * g;
  const double m_hat = m / (1 - std::pow(o.beta1, static_cast<double>(o.step)));
  const double v_hat = v / (1 - std::pow(o.beta2, static_cast<double>(o.step)));
  p = p * (1 - o.lr * decay) - o.lr * m_hat / (std::sqrt(v_hat) + o.eps);
}

TEST(Adamw, FollowsItsFormulaAndWritesTheComputeCopy) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    std::vector<AdamwTensor> tensors{state(40000, dtype, at::kBFloat16, 1), state(3, dtype, dtype, 2)};
    std::vector<std::vector<double>> p, m(2), v(2);
    for (const AdamwTensor& t : tensors) {
      const at::Tensor start = t.master.to(at::kDouble);
      p.emplace_back(start.data_ptr<double>(), start.data_ptr<double>() + start.numel());
      m[p.size() - 1].resize(p.back().size());
      v[p.size() - 1].resize(p.back().size());
    }
    for (std::int64_t step = 1; step <= 3; ++step) {
      const AdamwOptions options{
          .lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-5, .step = step, .gradient_scale = 0.5};
      adamw_step(tensors, options);
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        const at::Tensor gradient = tensors[i].gradient.to(at::kDouble);
        for (std::size_t e = 0; e < p[i].size(); ++e) {
          reference_step(p[i][e], gradient.data_ptr<double>()[e], m[i][e], v[i][e], tensors[i].weight_decay, options);
        }
      }
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const at::Tensor want = at::tensor(p[i], at::kDouble);
      EXPECT_LT(test::relative_error(tensors[i].master, want), dtype == at::kFloat ? 1e-6 : 1e-14);
      EXPECT_TRUE(at::equal(tensors[i].compute, tensors[i].master.to(tensors[i].compute.scalar_type())));
    }
  }
}

TEST(Adamw, DoesNotDependOnTheNumberOfThreads) {
  const int threads = at::get_num_threads();
  const auto run = [](int count) {
    at::set_num_threads(count);
    std::vector<AdamwTensor> tensors{state(50001, at::kFloat, at::kFloat, 4), state(77, at::kFloat, at::kFloat, 5)};
    adamw_step(tensors, {.lr = 0.01});
    return std::pair(tensors[0].master, sum_of_squares({tensors[0].gradient, tensors[1].gradient}));
  };
  const auto one = run(1), three = run(3);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one.first, three.first));
  EXPECT_EQ(one.second, three.second);
}

TEST(SumOfSquares, AccumulatesInDouble) {
  // A million values of 1 + 2^-12: float sums would lose the small part.
  const at::Tensor values = at::full({1000000}, 1.0F + 0x1p-12F);
  const double want = 1e6 * std::pow(1.0 + 0x1p-12, 2);
  EXPECT_NEAR(sum_of_squares({values}), want, 1e-6);
  EXPECT_NEAR(sum_of_squares({values.to(at::kDouble), values}), 2 * want, 1e-5);  // by ATen: dtypes are mixed
  EXPECT_EQ(sum_of_squares({}), 0);
}

TEST(Adamw, RefusesTensorsThatDoNotFit) {
  AdamwTensor wrong = state(4, at::kFloat, at::kFloat, 1);
  wrong.exp_avg = at::zeros({5});
  EXPECT_DFM_ERROR(ExitCode::kInternal, "adamw_step", (adamw_step({wrong}, {}), 0));
}

}  // namespace
}  // namespace dfm::ops
