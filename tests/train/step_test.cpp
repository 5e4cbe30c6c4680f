#include "dfm/train/step.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/ops/philox_normal.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "support/tolerance.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

class TrainStep : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<test::TempFolder>();
    test::write_tiny_dataset(folder_->path() / "data", 20);
    dataset_ = data::Dataset::open(folder_->path() / "data");
  }
  static void TearDownTestSuite() {
    dataset_.reset();
    folder_.reset();
  }
  static data::LoadedStep load(std::int64_t max_tokens, std::int64_t max_samples) {
    data::LoaderOptions options;
    options.limits = {.max_tokens = max_tokens, .max_samples = max_samples};
    options.global_batch_size = 12;
    options.first_position = 7;
    return data::StepLoader(dataset_, options).next();
  }
  static StepSettings settings(at::ScalarType dtype) {
    StepSettings result;
    result.compute_dtype = dtype;
    result.diffusion.text_dropout = 0.4;
    return result;
  }
  static models::DitConfig model_config() {
    models::DitConfig config = test::tiny_config("", "run").model;
    config.crossattn_emb_size = test::kTextWidth;
    return config;
  }
  static std::unique_ptr<test::TempFolder> folder_;
  static std::shared_ptr<data::Dataset> dataset_;
};
std::unique_ptr<test::TempFolder> TrainStep::folder_;
std::shared_ptr<data::Dataset> TrainStep::dataset_;

TEST_F(TrainStep, RowsHoldEachSamplesOwnNoiseSigmaAndText) {
  const data::LoadedStep step = load(256, 0);
  RowBuilder builder(model_config(), settings(at::kFloat));
  std::size_t seen = 0, dropped = 0;
  for (const data::Row& row : step.rows) {
    const TrainRow built = builder.build(step, row);
    ASSERT_EQ(built.input.x_TC.size(0), row.padded_tokens);
    std::int64_t first = 0, text_first = 0;
    for (std::size_t i = 0; i < built.members.size(); ++i, ++seen) {
      const data::LoadedSample& loaded = step.samples[static_cast<std::size_t>(built.members[i])];
      const auto position = static_cast<std::uint64_t>(loaded.position);
      const at::Tensor tokens = models::patchify(loaded.sample.latent_CTHW.to(at::kFloat));
      at::Tensor epsilon = at::empty_like(tokens);
      ops::philox_normal_(epsilon, 1234, position, Purpose::kNoise);
      const double sigma = diffusion::draw_sigma(1234, position, settings(at::kFloat).diffusion);
      const at::Tensor want = (0.5 * tokens + sigma * epsilon) * diffusion::precondition(sigma).c_in;
      EXPECT_LT(test::relative_error(built.input.x_TC.narrow(0, first, tokens.size(0)), want), 1e-6);
      EXPECT_EQ(built.sigmas[i], sigma);
      EXPECT_TRUE(
          at::equal(built.input.position_T3.narrow(0, first, tokens.size(0)),
                    models::token_positions({16, loaded.sample.latent_CTHW.size(1), loaded.sample.latent_CTHW.size(2),
                                             loaded.sample.latent_CTHW.size(3)})));
      if (diffusion::draw_text_dropout(1234, position, settings(at::kFloat).diffusion)) {
        EXPECT_EQ(built.text_lengths[i], 0);
        ++dropped;
      } else {
        const at::Tensor text = loaded.sample.text_LE.to(at::kFloat);
        EXPECT_TRUE(at::equal(built.input.text_LE.narrow(0, text_first, text.size(0)), text));
        text_first += text.size(0);
      }
      first += tokens.size(0);
    }
    EXPECT_EQ(built.num_tokens, first);
    EXPECT_EQ(text_first, built.input.text_LE.size(0));
    EXPECT_EQ(built.input.x_TC.narrow(0, first, row.padded_tokens - first).abs().sum().item<float>(), 0);
  }
  EXPECT_EQ(seen, 12U);
  EXPECT_GT(dropped, 0U);
  EXPECT_LT(dropped, 12U);
}

struct Sums {
  double loss = 0;
  parallel::NamedTensors gradients;
  std::size_t num_rows = 0;
};

// The model with values everywhere: some parameters start at zero and would hide half of the gradients.
models::Dit filled_model(const models::DitConfig& config, at::ScalarType dtype) {
  models::Dit model(config, dtype, at::kCPU, 5);
  const at::NoGradGuard no_grad;
  std::uint64_t stream = 0;
  for (const auto& [name, parameter] : model.parameters()) {
    at::Tensor noise = at::empty(parameter.sizes(), at::kFloat);
    ops::philox_normal_(noise, 3, stream++, Purpose::kSynthetic);
    at::Tensor(parameter).add_(noise.to(dtype), 0.05);
  }
  return model;
}

Sums sums_of(const data::LoadedStep& step, const models::DitConfig& config, const StepSettings& settings) {
  const models::Dit model = filled_model(config, settings.compute_dtype);
  parallel::DistributedOptimizer optimizer(model.placed_parameters(), {}, {});
  RowBuilder builder(config, settings);
  Sums sums;
  for (const data::Row& row : step.rows) {
    sums.loss += forward_backward(model, builder.build(step, row)).sum.item<double>();
  }
  optimizer.reduce_gradients();
  for (const comm::ShardedTensor& gradient : optimizer.gradients())
    sums.gradients.emplace_back(gradient.name, gradient.local.at(0).view(gradient.shape));
  sums.num_rows = step.rows.size();
  return sums;
}

TEST_F(TrainStep, GradientsDoNotDependOnPacking) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const Sums want = sums_of(load(4096, 0), model_config(), settings(dtype));
    EXPECT_EQ(want.num_rows, 1U);
    for (const auto& [max_tokens, max_samples] : {std::pair<std::int64_t, std::int64_t>{4096, 1}, {48, 0}, {128, 3}}) {
      StepSettings own = settings(dtype);
      own.has_padding = max_samples != 3;
      const Sums got = sums_of(load(max_tokens, max_samples), model_config(), own);
      EXPECT_GT(got.num_rows, 2U);
      EXPECT_NEAR(got.loss, want.loss, want.loss * (dtype == at::kDouble ? 1e-12 : 1e-6));
      for (std::size_t i = 0; i < want.gradients.size(); ++i) {
        ASSERT_TRUE(got.gradients[i].second.defined()) << want.gradients[i].first;
        EXPECT_LT(test::relative_error(got.gradients[i].second, want.gradients[i].second),
                  test::tolerance(dtype).parameter_gradient)
            << want.gradients[i].first;
      }
    }
  }
}

TEST_F(TrainStep, BadSamplesWeighNothing) {
  // The same step with one sample turned bad equals the sums without it.
  data::LoadedStep step = load(4096, 0);
  data::LoadedStep alone = step;
  const std::int64_t bad = step.rows[0].members[3];
  std::erase(step.rows[0].members, bad);
  step.samples[static_cast<std::size_t>(bad)].sample = {};
  step.samples[static_cast<std::size_t>(bad)].sample.problem = "latent: got nan";
  alone.rows[0].members = {bad};
  const data::LoadedStep all = load(4096, 0);
  const auto config = model_config();
  const Sums without = sums_of(step, config, settings(at::kDouble));
  const Sums only = sums_of(alone, config, settings(at::kDouble));
  const Sums both = sums_of(all, config, settings(at::kDouble));
  EXPECT_NEAR(without.loss + only.loss, both.loss, both.loss * 1e-12);
  EXPECT_GT(only.loss, 0);
}

}  // namespace
}  // namespace dfm::train
