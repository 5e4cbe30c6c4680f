#include "dfm/parallel/distributed_optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "dfm/base/error.h"
#include "dfm/ops/adamw.h"
#include "parallel/optimizer_cases.h"
#include "parallel/thread_ranks.h"
#include "support/errors.h"
#include "support/tolerance.h"

namespace dfm::parallel {
namespace {

using dfm::test::relative_error;

OptimizerSettings settings() {
  OptimizerSettings result;
  result.weight_decay = 0.1;
  result.clip_grad = 1.0;
  return result;
}

std::vector<Parameter> parameters_of(at::ScalarType dtype) {
  const at::Tensor matrix = (at::arange(12, at::kFloat).reshape({3, 4}) * 0.1 - 0.5).to(dtype);
  const at::Tensor vector = (at::arange(5, at::kFloat) * 0.2).to(dtype);
  return {{.name = "matrix", .tensor = matrix, .shape = {3, 4}, .stage = 0},
          {.name = "vector", .tensor = vector, .shape = {5}, .stage = 1}};
}

// Loss whose gradient is `scale` times fixed numbers.
void backward(const std::vector<Parameter>& parameters, double scale) {
  const at::Tensor loss = (parameters[0].tensor * at::arange(12).reshape({3, 4})).sum() * scale;
  (loss + (parameters[1].tensor * at::arange(5)).sum() * scale).backward();
}

double one_step(DistributedOptimizer& optimizer, const std::vector<Parameter>& parameters,
                const std::vector<double>& scales, double lr, double divisor, std::int64_t step) {
  optimizer.zero_gradients();
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (i + 1 == scales.size()) optimizer.begin_last_row();
    backward(parameters, scales[i]);
  }
  optimizer.reduce_gradients();
  return optimizer.step(lr, divisor, step);
}

TEST(DistributedOptimizer, ClipsAndStepsAsAdamWDoes) {
  const std::vector<Parameter> parameters = parameters_of(at::kDouble);
  const at::Tensor before = parameters[0].tensor.clone(), vector_before = parameters[1].tensor.clone();
  DistributedOptimizer optimizer(parameters, {}, settings());
  const double norm = one_step(optimizer, parameters, {3, 5}, 0.01, 4, 1);  // 8/4 = 2 times the fixed numbers

  const at::Tensor gradient = at::arange(12, at::kDouble).reshape({3, 4}) * 2;
  const double want_norm = 2 * std::sqrt(506.0 + 30.0);
  EXPECT_NEAR(norm, want_norm, 1e-12 * want_norm);
  // After one step the corrected moments are g and g^2.
  const at::Tensor clipped = gradient / want_norm;
  const at::Tensor want = before * (1 - 0.01 * 0.1) - 0.01 * clipped / (clipped.abs() + settings().eps);
  EXPECT_LT(relative_error(parameters[0].tensor, want), 1e-12);
  const at::Tensor vector_clipped = at::arange(5, at::kDouble) * 2 / want_norm;
  const at::Tensor vector_want = vector_before - 0.01 * vector_clipped / (vector_clipped.abs() + settings().eps);
  EXPECT_LT(relative_error(parameters[1].tensor, vector_want), 1e-12) << "1-D parameters do not decay";
}

// Buckets are where numbers lie, not what they are: bit for bit the plain optimizer with tensors of their own.
TEST(DistributedOptimizer, IsOnOneRankThePlainOptimizerBitForBit) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::ScalarType master_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
    std::vector<Parameter> parameters;
    std::vector<at::Tensor> plain, masters, exp_avg, exp_avg_sq;
    const at::Generator generator = at::detail::createCPUGenerator(7);
    for (std::int64_t i = 0; i < 12; ++i) {
      const std::vector<std::int64_t> shape =
          i % 3 == 0 ? std::vector<std::int64_t>{37 + i} : std::vector<std::int64_t>{5 + 13 * i, 201};
      plain.push_back(at::randn(shape, generator, at::kFloat).to(dtype).set_requires_grad(true));
      masters.push_back(plain.back().detach().to(master_dtype, false, /*copy=*/true));
      exp_avg.push_back(at::zeros_like(masters.back()));
      exp_avg_sq.push_back(at::zeros_like(masters.back()));
      parameters.push_back({.name = std::to_string(i),
                            .tensor = plain.back().detach().clone(),
                            .shape = shape,
                            .stage = static_cast<int>(i / 4)});
    }
    OptimizerSettings small = settings();
    small.bucket_size = 40000;
    DistributedOptimizer optimizer(parameters, {}, small);
    for (int step = 1; step <= 5; ++step) {
      std::vector<at::Tensor> sums;
      for (const at::Tensor& master : masters) sums.push_back(at::zeros_like(master));
      optimizer.zero_gradients();
      for (int row = 0; row < 3; ++row) {
        if (row == 2) optimizer.begin_last_row();
        for (std::size_t i = 0; i < plain.size(); ++i) {
          const at::Tensor x = at::randn(plain[i].sizes(), generator, at::kFloat).to(dtype);
          (plain[i] * plain[i] * x).sum().backward();
          sums[i].add_(plain[i].grad());
          plain[i].mutable_grad().reset();
          (parameters[i].tensor * parameters[i].tensor * x).sum().backward();
        }
      }
      optimizer.reduce_gradients();
      const double norm = std::sqrt(ops::sum_of_squares(sums)) / 3;
      EXPECT_EQ(optimizer.step(0.01, 3, step), norm);
      std::vector<ops::AdamwTensor> tensors;
      for (std::size_t i = 0; i < plain.size(); ++i) {
        tensors.push_back({masters[i], sums[i], exp_avg[i], exp_avg_sq[i], plain[i].detach(),
                           plain[i].dim() > 1 ? small.weight_decay : 0.0});
      }
      ops::adamw_step(tensors, {.lr = 0.01,
                                .beta1 = small.beta1,
                                .beta2 = small.beta2,
                                .eps = small.eps,
                                .step = step,
                                .gradient_scale = (norm > 1 ? 1 / norm : 1.0) / 3});
    }
    for (std::size_t i = 0; i < plain.size(); ++i)
      EXPECT_TRUE(at::equal(parameters[i].tensor, plain[i])) << i << " of " << at::toString(dtype);
  }
}

TEST(DistributedOptimizer, KeepsMastersAndSumsInFloat32ForBfloat16) {
  const std::vector<Parameter> parameters = parameters_of(at::kBFloat16), wide = parameters_of(at::kFloat);
  for (std::size_t i = 0; i < wide.size(); ++i) at::Tensor(wide[i].tensor).copy_(parameters[i].tensor);
  DistributedOptimizer optimizer(parameters, {}, settings());
  DistributedOptimizer reference(wide, {}, settings());
  const std::vector<double> scales = {1.0, 0.00390625, 0.00390625};  // lost when added to 1 in bfloat16
  for (int step = 1; step <= 20; ++step) {
    one_step(optimizer, parameters, scales, 1e-4, 1, step);
    EXPECT_NEAR(optimizer.gradients()[0].local[0][1].item<double>(), 1.0078125, 1e-6);
    EXPECT_FALSE(parameters[0].tensor.grad().defined()) << "narrow gradients are freed at once";
    one_step(reference, wide, scales, 1e-4, 1, step);
  }
  const comm::ShardedTensor state = optimizer.state().front();
  EXPECT_EQ(state.name, "optimizer.state.param.matrix");
  EXPECT_EQ(state.dtype, at::kFloat);
  const at::Tensor master = state.local.at(0).view({3, 4});
  EXPECT_LT(relative_error(master, wide[0].tensor), 1e-6) << "updates smaller than bfloat16 count";
  EXPECT_TRUE(at::equal(parameters[0].tensor, master.to(at::kBFloat16)));
}

TEST(DistributedOptimizer, TakesNoGradientAsZero) {
  const std::vector<Parameter> parameters = parameters_of(at::kFloat);
  DistributedOptimizer optimizer(parameters, {}, settings());
  optimizer.zero_gradients();
  optimizer.begin_last_row();
  parameters[0].tensor.sum().backward();
  optimizer.reduce_gradients();
  const at::Tensor vector_before = parameters[1].tensor.detach().clone();
  EXPECT_NEAR(optimizer.step(0.01, 1, 1), std::sqrt(12.0), 1e-5);
  EXPECT_TRUE(at::equal(parameters[1].tensor, vector_before));
}

TEST(DistributedOptimizer, ChangesNothingWhenTheNormIsNotFinite) {
  for (const double value : {HUGE_VAL, std::nan("")}) {
    const std::vector<Parameter> parameters = parameters_of(at::kFloat);
    DistributedOptimizer optimizer(parameters, {}, settings());
    const at::Tensor before = parameters[0].tensor.detach().clone();
    EXPECT_FALSE(std::isfinite(one_step(optimizer, parameters, {1, value}, 0.01, 1, 1)));
    EXPECT_TRUE(at::equal(parameters[0].tensor, before));
    EXPECT_TRUE(std::isfinite(one_step(optimizer, parameters, {1}, 0.01, 1, 2))) << "it can go on";
    EXPECT_TRUE(at::isfinite(parameters[0].tensor).all().item<bool>());
  }
}

TEST(DistributedOptimizer, TellsWhichRowIsNotFinite) {
  const std::vector<Parameter> parameters = parameters_of(at::kBFloat16);
  DistributedOptimizer optimizer(parameters, {}, settings());
  EXPECT_FALSE(std::isfinite(one_step(optimizer, parameters, {1, HUGE_VAL}, 0.01, 1, 1)));
  for (const double scale : {1.0, HUGE_VAL, std::nan("")}) {
    optimizer.zero_gradients();
    backward(parameters, scale);
    EXPECT_EQ(optimizer.has_finite_gradients(), scale == 1.0);
  }
}

TEST(DistributedOptimizer, KeepsIdentityOfTensorsAndStopsListeningWhenItGoes) {
  const std::vector<Parameter> parameters = parameters_of(at::kBFloat16);
  const at::TensorImpl* impl = parameters[0].tensor.unsafeGetTensorImpl();
  const at::Tensor before = parameters[0].tensor.clone();
  {
    const DistributedOptimizer optimizer(parameters, {}, settings());
    EXPECT_EQ(parameters[0].tensor.unsafeGetTensorImpl(), impl);
    EXPECT_TRUE(at::equal(parameters[0].tensor, before));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(parameters[0].tensor.data_ptr()) % 64, 0U);
    EXPECT_EQ(optimizer.gradient_bytes(), 128 * 4);
    EXPECT_EQ(optimizer.state_bytes(), 3 * 128 * 4);
  }
  backward(parameters, 1);
  EXPECT_TRUE(parameters[0].tensor.grad().defined());
}

TEST(DistributedOptimizer, ResetsFromParametersAndFromUnroundedValues) {
  const std::vector<Parameter> parameters = parameters_of(at::kBFloat16);
  DistributedOptimizer optimizer(parameters, {}, settings());
  one_step(optimizer, parameters, {1}, 0.01, 1, 1);
  const at::Tensor matrix = at::arange(12, at::kDouble).reshape({3, 4}) / 7;
  optimizer.reset_from({{"vector", at::ones({5})}, {"matrix", matrix}});
  const auto state = optimizer.state();
  EXPECT_TRUE(at::equal(state[0].local[0].view({3, 4}), matrix.to(at::kFloat)));
  EXPECT_TRUE(at::equal(parameters[0].tensor, matrix.to(at::kFloat).to(at::kBFloat16)));
  EXPECT_EQ(state[2].name, "optimizer.state.exp_avg.matrix");
  EXPECT_EQ(state[2].local[0].abs().sum().item<double>(), 0);
  at::Tensor(parameters[0].tensor).detach().fill_(3);
  optimizer.reset_from_parameters();
  EXPECT_EQ(optimizer.state()[0].local[0].sum().item<double>(), 36);
  EXPECT_DFM_ERROR(ExitCode::kInternal, "optimizer.state.param.vector: got no value of shape [5]",
                   (optimizer.reset_from({{"matrix", matrix}}), 0));
}

TEST(DistributedOptimizer, RefusesWhatWouldBeLost) {
  const std::vector<Parameter> parameters = parameters_of(at::kFloat);
  DistributedOptimizer optimizer(parameters, {}, settings());
  EXPECT_DFM_ERROR(ExitCode::kInternal, "want reduced gradients", optimizer.step(0.01, 1, 1));
  optimizer.begin_last_row();
  backward(parameters, 1);
  EXPECT_DFM_ERROR(ExitCode::kInternal, "gradient of ", (backward(parameters, 1), 0));
  ReduceGroups groups;
  groups.replicas = comm::alone(3);
  EXPECT_DFM_ERROR(ExitCode::kInternal, "got replicas [3], tensor [0]",
                   DistributedOptimizer(parameters_of(at::kFloat), groups, settings()));
  std::vector<Parameter> wrong = parameters_of(at::kFloat);
  wrong[1].shape = {6};
  EXPECT_DFM_ERROR(ExitCode::kInternal, "parameter vector: got shape [5] of [6]",
                   DistributedOptimizer(wrong, {}, settings()));
}

// A group of two of which only this rank exists: notes what is called and what is waited for.
class NotingGroup final : public comm::Group {
 public:
  NotingGroup() : Group("noting", {0, 1}, 0) {}
  comm::Work all_reduce(const at::Tensor& x, comm::Reduce) override { return note("all_reduce", x); }
  comm::Work all_gather(const at::Tensor& out, const at::Tensor&) override { return note("gather", out); }
  comm::Work reduce_scatter(const at::Tensor&, const at::Tensor& in) override { return note("reduce", in); }
  comm::Work all_to_all(const at::Tensor& out, const at::Tensor&) override { return note("all_to_all", out); }
  comm::Work broadcast(const at::Tensor& x, int) override { return note("broadcast", x); }
  comm::Work exchange(const std::vector<comm::Transfer>&, const std::vector<comm::Transfer>&) override { return {}; }
  void barrier() override {}
  std::vector<std::string> take() { return std::exchange(notes_, {}); }

 private:
  comm::Work note(const std::string& what, const at::Tensor& x) {
    const std::string text = what + " " + std::to_string(x.numel());
    notes_.push_back(text);
    return comm::Work([this, text] { notes_.push_back("wait for " + text); });
  }
  std::vector<std::string> notes_;
};

using Notes = std::vector<std::string>;

struct NotingCase {
  explicit NotingCase(bool overlap) {
    groups.data_context = groups.replicas = noting;
    for (int stage = 0; stage < 3; ++stage) {
      parameters.push_back({.name = std::to_string(stage),
                            .tensor = at::ones({100 + 100 * stage}),
                            .shape = {100 + 100 * stage},
                            .stage = stage});
    }
    OptimizerSettings small = settings();
    small.bucket_size = 1;
    small.overlap_grad_reduce = small.overlap_param_gather = overlap;
    optimizer = std::make_unique<DistributedOptimizer>(parameters, groups, small);
  }
  void backward() const {
    at::Tensor sum = at::zeros({});
    for (const Parameter& parameter : parameters) sum = sum + parameter.tensor.sum();
    sum.backward();
  }

  std::shared_ptr<NotingGroup> noting = std::make_shared<NotingGroup>();
  ReduceGroups groups;
  std::vector<Parameter> parameters;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

TEST(DistributedOptimizer, ReducesDuringTheLastBackwardAndGathersDuringForward) {
  const NotingCase with(true);
  DistributedOptimizer& optimizer = *with.optimizer;
  with.backward();
  EXPECT_EQ(with.noting->take(), Notes{}) << "not the last row";
  optimizer.begin_last_row();
  with.backward();
  EXPECT_EQ(with.noting->take(), (Notes{"reduce 384", "reduce 256", "reduce 128"})) << "last stage first";
  optimizer.reduce_gradients();
  EXPECT_EQ(with.noting->take(), (Notes{"wait for reduce 384", "wait for reduce 256", "wait for reduce 128"}));
  optimizer.step(0.01, 1, 1);
  EXPECT_EQ(with.noting->take(), (Notes{"gather 128", "gather 256", "gather 384"})) << "first stage first";
  optimizer.wait_for_parameters(1);
  optimizer.wait_for_parameters(1);
  EXPECT_EQ(with.noting->take(), (Notes{"wait for gather 256"}));
  static_cast<void>(optimizer.weights());
  EXPECT_EQ(with.noting->take(), (Notes{"wait for gather 384", "wait for gather 128"})) << "readers wait";
}

TEST(DistributedOptimizer, DoesAllAtTheEndWithoutOverlap) {
  const NotingCase without(false);
  without.optimizer->begin_last_row();
  without.backward();
  EXPECT_EQ(without.noting->take(), Notes{});
  without.optimizer->reduce_gradients();
  EXPECT_EQ(without.noting->take().size(), 6U);
  without.optimizer->step(0.01, 1, 1);
  EXPECT_EQ(without.noting->take().size(), 6U) << "gathers, each waited for";
}

// Buckets go in their order even where the graph completes them in another one.
TEST(DistributedOptimizer, LaunchesBucketsStrictlyInOrder) {
  const NotingCase with(true);
  with.optimizer->begin_last_row();
  with.parameters[0].tensor.sum().backward();
  with.parameters[2].tensor.sum().backward();
  EXPECT_EQ(with.noting->take(), (Notes{"reduce 384"}));
  with.parameters[1].tensor.sum().backward();
  EXPECT_EQ(with.noting->take(), (Notes{"reduce 256", "reduce 128"}));
}

TEST(DistributedOptimizerOverThreads, EqualsOneRank) {
  for (const int num_ranks : {1, 2, 3, 4}) {
    for (const test::OptimizerCase& the_case : test::optimizer_cases(num_ranks)) {
      test::run_threads(num_ranks, [&](int rank, const test::MakeGroup& make_group) {
        test::check_equals_one_rank(the_case, rank, make_group);
      });
    }
  }
}

TEST(DistributedOptimizerOverThreads, StateGoesFromAnyLayoutIntoAnyOther) {
  const std::vector<test::OptimizerCase> cases = test::optimizer_cases(4);
  for (const test::OptimizerCase& from : cases) {
    for (const test::OptimizerCase& to : cases) {
      if (from.dtype != to.dtype) continue;
      test::run_threads(4, [&](int rank, const test::MakeGroup& make_group) {
        test::check_state_goes_to(from, to, rank, make_group);
      });
    }
  }
}

}  // namespace
}  // namespace dfm::parallel
