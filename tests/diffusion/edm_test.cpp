#include "dfm/diffusion/edm.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dfm/base/error.h"
#include "support/tolerance.h"

namespace dfm::diffusion {
namespace {

const std::vector<std::int64_t> kOffsets = {0, 5, 5, 12};  // three segments, the second empty
const std::vector<double> kSigmas = {0.3, 1.0, 40.0};

at::Tensor numbers(std::vector<std::int64_t> shape, double phase) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return at::sin(at::arange(count, at::kDouble) * 0.7 + phase).reshape(shape);
}

TEST(Precondition, MeetsItsDefiningIdentities) {
  for (const double sigma : {1e-3, 0.5, 80.0}) {
    const Preconditioning p = precondition(sigma);
    EXPECT_NEAR(p.c_in * p.c_in * (sigma * sigma + 0.25), 1.0, 1e-14);  // unit variance of the network's input
    EXPECT_NEAR(p.loss_weight * p.c_out * p.c_out, 1.0, 1e-14);
    EXPECT_NEAR(p.c_skip * (sigma * sigma + 0.25), 0.25, 1e-14);
    EXPECT_NEAR(p.c_noise, std::log(sigma) / 4, 1e-15);
  }
}

TEST(DrawSigma, IsLogNormalAndAFunctionOfPositionAlone) {
  const DiffusionConfig config{.p_mean = -1.2, .p_std = 1.5};
  double sum = 0, sum_squares = 0;
  constexpr int kDraws = 20000;
  for (std::uint64_t position = 0; position < kDraws; ++position) {
    const double log_sigma = std::log(draw_sigma(7, position, config));
    sum += log_sigma;
    sum_squares += log_sigma * log_sigma;
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, -1.2, 0.04);
  EXPECT_NEAR(std::sqrt(sum_squares / kDraws - mean * mean), 1.5, 0.04);
  EXPECT_EQ(draw_sigma(7, 11, config), draw_sigma(7, 11, config));
  EXPECT_NE(draw_sigma(7, 11, config), draw_sigma(8, 11, config));
}

TEST(DrawTextDropout, DropsTheGivenShare) {
  int dropped = 0, dropped_with_sigma_high = 0, high = 0;
  constexpr int kDraws = 20000;
  const DiffusionConfig config{.text_dropout = 0.2};
  for (std::uint64_t position = 0; position < kDraws; ++position) {
    const bool drop = draw_text_dropout(7, position, config);
    const bool is_high = draw_sigma(7, position, config) > 1;
    dropped += drop;
    high += is_high;
    dropped_with_sigma_high += drop && is_high;
    EXPECT_FALSE(draw_text_dropout(7, position, {.text_dropout = 0.0}));
    EXPECT_TRUE(draw_text_dropout(7, position, {.text_dropout = 1.0}));
  }
  EXPECT_NEAR(dropped / double{kDraws}, 0.2, 0.01);
  EXPECT_NEAR(dropped_with_sigma_high / static_cast<double>(high), 0.2, 0.015);  // independent of sigma
}

TEST(AddNoise, ScalesEachSegmentByItsOwnSigmaAndZeroesPadding) {
  const at::Tensor x0 = numbers({16, 8}, 0.1), epsilon = numbers({16, 8}, 2.0);
  at::Tensor dirty_x0 = x0.clone();
  dirty_x0.narrow(0, 12, 4).fill_(std::nan(""));  // whatever a padding row held must not come through
  const NoisedRow row = add_noise(dirty_x0, epsilon, kSigmas, kOffsets);
  EXPECT_EQ(row.x_in_TC.scalar_type(), at::kDouble);
  EXPECT_EQ(row.x_in_TC.narrow(0, 12, 4).abs().max().item<double>(), 0.0);
  for (std::size_t i = 0; i < kSigmas.size(); ++i) {
    const std::int64_t length = kOffsets[i + 1] - kOffsets[i];
    const at::Tensor want = x0.narrow(0, kOffsets[i], length) + kSigmas[i] * epsilon.narrow(0, kOffsets[i], length);
    EXPECT_LT(test::relative_error(row.x_t_TC.narrow(0, kOffsets[i], length), want), 1e-14);
    EXPECT_LT(test::relative_error(row.x_in_TC.narrow(0, kOffsets[i], length),
                                   want / std::sqrt(kSigmas[i] * kSigmas[i] + 0.25)),
              1e-14);
    EXPECT_NEAR(row.c_noise_N[static_cast<std::int64_t>(i)].item<double>(), std::log(kSigmas[i]) / 4, 1e-14);
  }
  EXPECT_EQ(add_noise(x0.to(at::kBFloat16), epsilon.to(at::kFloat), kSigmas, kOffsets).x_in_TC.scalar_type(),
            at::kFloat);
}

TEST(EdmLoss, SumsWeightedErrorsOfEachSegmentAndIgnoresPadding) {
  const at::Tensor x0 = numbers({16, 8}, 0.1), epsilon = numbers({16, 8}, 2.0);
  at::Tensor f = numbers({16, 8}, 4.0);
  f.narrow(0, 12, 4).fill_(1e9);
  f.requires_grad_(true);
  const NoisedRow row = add_noise(x0, epsilon, kSigmas, kOffsets);
  at::Tensor segments;
  const at::Tensor loss = edm_loss_sum(f, row, x0, kSigmas, kOffsets, &segments);
  double total = 0;
  for (std::size_t i = 0; i < kSigmas.size(); ++i) {
    const Preconditioning p = precondition(kSigmas[i]);
    const auto cut = [&](const at::Tensor& t) {
      return t.detach().narrow(0, kOffsets[i], kOffsets[i + 1] - kOffsets[i]);
    };
    const at::Tensor d = p.c_skip * cut(row.x_t_TC) + p.c_out * cut(f);
    const double want = (p.loss_weight * (cut(x0) - d).square()).sum().item<double>() / 8;
    EXPECT_NEAR(segments[static_cast<std::int64_t>(i)].item<double>(), want, 1e-10 * (1 + want));
    total += want;
  }
  EXPECT_NEAR(loss.item<double>(), total, 1e-10 * total);
  loss.backward();
  EXPECT_EQ(f.grad().narrow(0, 12, 4).abs().max().item<double>(), 0.0);
  EXPECT_GT(f.grad().narrow(0, 0, 12).abs().min().item<double>(), 0.0);
}

TEST(EdmLoss, NamesTheSegmentThatIsNotFinite) {
  const std::vector<std::int64_t> offsets = {0, 2, 5, 6};
  const std::vector<double> sigmas = {0.5, 1.0, 2.0};
  const at::Tensor x0_TC = at::ones({8, 4}), epsilon_TC = at::ones({8, 4});
  const NoisedRow row = add_noise(x0_TC, epsilon_TC, sigmas, offsets);
  const at::Tensor f_TC = at::zeros({8, 4});
  at::Tensor want_N, got_N;
  edm_loss_sum(f_TC, row, x0_TC, sigmas, offsets, &want_N);
  f_TC[3][1] = INFINITY;
  edm_loss_sum(f_TC, row, x0_TC, sigmas, offsets, &got_N);
  EXPECT_TRUE(std::isnan(got_N[1].item<double>()));
  EXPECT_EQ(got_N[0].item<double>(), want_N[0].item<double>());
  EXPECT_EQ(got_N[2].item<double>(), want_N[2].item<double>());
}

TEST(EdmLoss, TakesAnOutputInBf16AndComputesInFp32) {
  const at::Tensor x0 = numbers({16, 8}, 0.1).to(at::kFloat), epsilon = numbers({16, 8}, 2.0).to(at::kFloat);
  const at::Tensor f = numbers({16, 8}, 4.0).to(at::kBFloat16);
  const NoisedRow row = add_noise(x0, epsilon, kSigmas, kOffsets);
  const NoisedRow row64 = add_noise(x0.to(at::kDouble), epsilon, kSigmas, kOffsets);
  const double got = edm_loss_sum(f, row, x0, kSigmas, kOffsets).item<double>();
  const double want = edm_loss_sum(f, row64, x0, kSigmas, kOffsets).item<double>();
  EXPECT_NEAR(got, want, 1e-6 * want);
}

TEST(AddNoise, RefusesOffsetsThatDoNotFit) {
  const at::Tensor x0 = numbers({4, 8}, 0.1);
  EXPECT_THROW(add_noise(x0, x0, kSigmas, kOffsets), InternalError);
  EXPECT_THROW(add_noise(x0, x0, {1.0}, {0, 2, 4}), InternalError);
}

}  // namespace
}  // namespace dfm::diffusion
