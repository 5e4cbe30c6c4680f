#include "dfm/diffusion/sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dfm/base/error.h"
#include "diffusion/mixture.h"

namespace dfm::diffusion {
namespace {

const at::Tensor kNoise = at::linspace(-2.5, 2.5, 41, at::kDouble).unsqueeze(1);

// Data N(mean, std^2): the probability-flow ODE has the solution
// x(s) = mean + (x(S) - mean) sqrt((std^2 + s^2) / (std^2 + S^2)).
constexpr double kMean = 0.4, kStd = 0.7;
at::Tensor gaussian_denoiser(const at::Tensor& x, double sigma) {
  return kMean + kStd * kStd / (kStd * kStd + sigma * sigma) * (x - kMean);
}
at::Tensor gaussian_solution(double sigma) {
  return kMean + (80.0 * kNoise - kMean) * std::sqrt((kStd * kStd + sigma * sigma) / (kStd * kStd + 80.0 * 80.0));
}

const test::Mixture kMixture{.mu_KD = at::tensor({-1.0, 0.2, 1.1}, at::kDouble).unsqueeze(1),
                             .std_K = at::tensor({0.2, 0.1, 0.3}, at::kDouble),
                             .logit_K = at::tensor({0.0, -0.5, 0.3}, at::kDouble)};

at::Tensor run(const Denoiser& denoiser, Sampler sampler, std::int64_t num_steps) {
  return sample(denoiser, kNoise, {.sampler = sampler, .num_steps = num_steps});
}

double rms(const at::Tensor& difference) { return difference.square().mean().sqrt().item<double>(); }

// The error before the last step: that one goes from sigma_min to 0 with order 1 and would hide the order.
double error_at_sigma_min(Sampler sampler, std::int64_t num_steps) {
  at::Tensor state;
  sample(gaussian_denoiser, kNoise,
         {.sampler = sampler, .num_steps = num_steps, .on_step = [&](std::int64_t step, std::int64_t, const auto& x) {
            if (step == num_steps - 2) state = x;
          }});
  return rms(state - gaussian_solution(0.002));
}

TEST(SigmaSchedule, RunsFromTopToZero) {
  const std::vector<double> sigmas = sigma_schedule(35);
  ASSERT_EQ(sigmas.size(), 36U);
  EXPECT_NEAR(sigmas.front(), 80.0, 1e-12);
  EXPECT_NEAR(sigmas[34], 0.002, 1e-15);
  EXPECT_EQ(sigmas.back(), 0.0);
  for (std::size_t i = 0; i + 1 < sigmas.size(); ++i) EXPECT_GT(sigmas[i], sigmas[i + 1]);
  const std::vector<double> one = sigma_schedule(1);
  ASSERT_EQ(one.size(), 2U);
  EXPECT_NEAR(one[0], 80.0, 1e-12);
  EXPECT_THROW(sigma_schedule(0), ConfigError);
}

TEST(EdmEuler, ConvergesWithFirstOrder) {
  const double ratio = error_at_sigma_min(Sampler::kEdmEuler, 80) / error_at_sigma_min(Sampler::kEdmEuler, 160);
  EXPECT_NEAR(ratio, 2.0, 0.15);
}

TEST(Dpmpp2m, ConvergesWithSecondOrder) {
  const double ratio = error_at_sigma_min(Sampler::kDpmpp2m, 80) / error_at_sigma_min(Sampler::kDpmpp2m, 160);
  EXPECT_NEAR(ratio, 4.0, 0.5);
}

TEST(Dpmpp2m, ReachesTheAnalyticSolution) {
  EXPECT_LT(rms(run(gaussian_denoiser, Sampler::kDpmpp2m, 400) - gaussian_solution(0.0)), 1e-4);
}

TEST(Dpmpp2m, IsSeveralTimesMoreAccurateThanEulerOnAMixture) {
  const auto denoiser = [](const at::Tensor& x, double sigma) { return kMixture.denoise(x, sigma); };
  const at::Tensor reference = run(denoiser, Sampler::kDpmpp2m, 400);
  for (const std::int64_t num_steps : {18, 35, 70}) {
    const double euler = rms(run(denoiser, Sampler::kEdmEuler, num_steps) - reference);
    const double multistep = rms(run(denoiser, Sampler::kDpmpp2m, num_steps) - reference);
    EXPECT_LT(multistep, 0.5 * euler) << num_steps << " steps";
  }
}

TEST(Sample, OneStepIsTheDenoisedEstimate) {
  for (const Sampler sampler : {Sampler::kEdmEuler, Sampler::kDpmpp2m}) {
    EXPECT_LT(rms(run(gaussian_denoiser, sampler, 1) - gaussian_denoiser(80.0 * kNoise, 80.0)), 1e-12);
  }
}

TEST(Sample, KeepsItsStateInFloat64AndEvaluatesOnceAStep) {
  int calls = 0;
  const auto denoiser = [&](const at::Tensor& x, double sigma) {
    ++calls;
    EXPECT_EQ(x.scalar_type(), at::kDouble);
    return gaussian_denoiser(x, sigma).to(at::kFloat);
  };
  std::vector<std::int64_t> steps;
  const at::Tensor x =
      sample(denoiser, kNoise.to(at::kFloat),
             {.sampler = Sampler::kDpmpp2m, .num_steps = 5, .on_step = [&](auto step, auto total, auto&) {
                steps.push_back(step);
                EXPECT_EQ(total, 5);
              }});
  EXPECT_EQ(x.scalar_type(), at::kDouble);
  EXPECT_EQ(calls, 5);
  EXPECT_EQ(steps, (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
}

TEST(Guided, ExtrapolatesAwayFromTheUnconditional) {
  const auto c = [](const at::Tensor& x, double) { return x + 1.0; };
  const auto u = [](const at::Tensor& x, double) { return x - 1.0; };
  EXPECT_LT(rms(guided(c, u, 7.0)(kNoise, 1.0) - (kNoise + 1.0 + 7.0 * 2.0)), 1e-12);
}

TEST(Guided, WithoutGuidanceNeverCallsTheUnconditional) {
  const auto u = [](const at::Tensor& x, double) -> at::Tensor {
    ADD_FAILURE() << "the unconditional was called";
    return x;
  };
  EXPECT_LT(rms(guided(gaussian_denoiser, u, 0.0)(kNoise, 1.0) - gaussian_denoiser(kNoise, 1.0)), 1e-15);
}

}  // namespace
}  // namespace dfm::diffusion
