#include "dfm/train/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dfm/base/error.h"
#include "support/tolerance.h"

namespace dfm::train {
namespace {

OptimizerConfig settings() {
  OptimizerConfig config;
  config.weight_decay = 0.1;
  config.clip_grad = 1.0;
  return config;
}

NamedTensors parameters_of(at::ScalarType dtype) {
  const at::Tensor matrix = (at::arange(12, at::kFloat).reshape({3, 4}) * 0.1 - 0.5).to(dtype);
  const at::Tensor vector = (at::arange(5, at::kFloat) * 0.2).to(dtype);
  return {{"matrix", matrix}, {"vector", vector}};
}

// Loss whose gradient is `scale` times fixed numbers.
void backward(const NamedTensors& parameters, double scale) {
  at::Tensor loss = (parameters[0].second * at::arange(12).reshape({3, 4})).sum() * scale;
  (loss + (parameters[1].second * at::arange(5)).sum() * scale).backward();
}

TEST(Optimizer, ClipsAndStepsAsAdamWDoes) {
  const NamedTensors parameters = parameters_of(at::kDouble);
  const at::Tensor before = parameters[0].second.detach().clone();
  const at::Tensor vector_before = parameters[1].second.detach().clone();
  Optimizer optimizer(parameters, settings());
  backward(parameters, 3);
  optimizer.accumulate();
  backward(parameters, 5);
  optimizer.accumulate();
  const double norm = optimizer.step(0.01, 4, 1);  // gradients 8/4 = 2 times the fixed numbers

  const at::Tensor gradient = at::arange(12, at::kDouble).reshape({3, 4}) * 2;
  const double want_norm = 2 * std::sqrt(506.0 + 30.0);
  EXPECT_NEAR(norm, want_norm, 1e-12 * want_norm);
  // After one step the corrected moments are g and g^2.
  const at::Tensor clipped = gradient / want_norm;
  const at::Tensor want = before * (1 - 0.01 * 0.1) - 0.01 * clipped / (clipped.abs() + settings().adam_eps);
  EXPECT_LT(test::relative_error(parameters[0].second, want), 1e-12);
  const at::Tensor vector_clipped = at::arange(5, at::kDouble) * 2 / want_norm;
  const at::Tensor vector_want = vector_before - 0.01 * vector_clipped / (vector_clipped.abs() + settings().adam_eps);
  EXPECT_LT(test::relative_error(parameters[1].second, vector_want), 1e-12) << "1-D parameters do not decay";
}

TEST(Optimizer, KeepsMastersAndSumsInFloat32ForBfloat16) {
  const NamedTensors parameters = parameters_of(at::kBFloat16);
  const NamedTensors wide = parameters_of(at::kFloat);
  for (std::size_t i = 0; i < wide.size(); ++i) wide[i].second.copy_(parameters[i].second);
  Optimizer optimizer(parameters, settings());
  Optimizer reference(wide, settings());
  for (int step = 1; step <= 20; ++step) {
    for (const double scale : {1.0, 0.00390625, 0.00390625}) {  // lost when added to 1 in bfloat16
      backward(parameters, scale);
      optimizer.accumulate();
      backward(wide, scale);
      reference.accumulate();
    }
    EXPECT_NEAR(optimizer.gradients()[0].second.flatten()[1].item<double>(), 1.0078125, 1e-6);
    optimizer.step(1e-4, 1, step);
    reference.step(1e-4, 1, step);
  }
  const NamedTensors state = optimizer.state();
  EXPECT_EQ(state.front().first, "optimizer.state.param.matrix");
  EXPECT_EQ(state.front().second.scalar_type(), at::kFloat);
  EXPECT_LT(test::relative_error(state.front().second, wide[0].second), 1e-6) << "updates smaller than bfloat16 count";
  EXPECT_TRUE(at::equal(parameters[0].second, state.front().second.to(at::kBFloat16)));
}

TEST(Optimizer, TakesNoGradientAsZero) {
  const NamedTensors parameters = parameters_of(at::kFloat);
  Optimizer optimizer(parameters, settings());
  parameters[0].second.sum().backward();
  const at::Tensor vector_before = parameters[1].second.detach().clone();
  EXPECT_NEAR(optimizer.step(0.01, 1, 1), std::sqrt(12.0), 1e-5);
  EXPECT_TRUE(at::equal(parameters[1].second, vector_before));
}

TEST(Optimizer, ChangesNothingWhenTheNormIsNotFinite) {
  const NamedTensors parameters = parameters_of(at::kFloat);
  Optimizer optimizer(parameters, settings());
  const at::Tensor before = parameters[0].second.detach().clone();
  (parameters[0].second.sum() * INFINITY).backward();
  EXPECT_FALSE(std::isfinite(optimizer.step(0.01, 1, 1)));
  EXPECT_TRUE(at::equal(parameters[0].second, before));
}

TEST(Optimizer, StateGoesAroundBitForBit) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const NamedTensors parameters = parameters_of(dtype);
    Optimizer optimizer(parameters, settings());
    backward(parameters, 1);
    optimizer.accumulate();
    optimizer.step(0.01, 1, 1);
    NamedTensors state;
    for (const auto& [name, tensor] : optimizer.state()) state.emplace_back(name, tensor.clone());
    const NamedTensors others = parameters_of(dtype);
    Optimizer other(others, settings());
    other.load_state(state, "state.pt");
    for (std::size_t i = 0; i < parameters.size(); ++i)
      EXPECT_TRUE(at::equal(others[i].second, parameters[i].second)) << parameters[i].first;
    for (const auto* pair : {&parameters, &others}) backward(*pair, 2);
    optimizer.step(0.01, 1, 2);
    other.step(0.01, 1, 2);
    EXPECT_TRUE(at::equal(others[0].second, parameters[0].second));
  }
}

TEST(Optimizer, NamesEveryMissingAndMisshapenTensor) {
  Optimizer optimizer(parameters_of(at::kFloat), settings());
  NamedTensors state = optimizer.state();
  state[0].second = at::zeros({4, 3});
  state.pop_back();
  try {
    optimizer.load_state(state, "state.pt");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kCheckpoint);
    EXPECT_EQ(std::string(error.what()),
              "state.pt: got optimizer.state.param.matrix of shape [4, 3] instead of [3, 4], "
              "optimizer.state.exp_avg_sq.vector missing, want the state of this model");
  }
}

}  // namespace
}  // namespace dfm::train
