// What a run of several ranks says when its numbers go wrong.
#include "train/checks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/checkpoint/tensor_file.h"
#include "support/errors.h"
#include "support/ranks.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

TrainConfig small_config(const fs::path& folder, const std::string& run) {
  TrainConfig config = test::tiny_config(folder / "data", folder / run);
  config.model.hidden_size = 64;
  config.model.num_attention_heads = 4;
  return config;
}

// Changes the last bit of one value of the parameter on one rank.
void flip_last_bit(const models::Dit& model, const std::string& suffix) {
  for (const auto& [name, parameter] : model.parameters()) {
    if (!name.ends_with(suffix)) continue;
    const at::Tensor bits = parameter.detach().view(-1).view(at::kInt);
    bits[3] = bits[3].bitwise_xor(1);
    return;
  }
  FAIL() << suffix;
}

RANK_CASE(drift) {
  const fs::path folder = args.at(0);
  for (const auto& [tensor, context, suffix] :
       {std::tuple<std::int64_t, std::int64_t, const char*>{2, 1, "x_embedder.weight"},
        {2, 1, "layers.1.full_self_attention.q_layernorm.weight"},
        {1, 2, "layers.0.mlp.linear_fc2.weight"},
        {1, 1, "final_layer_linear.bias"}}) {
    TrainConfig config = small_config(folder, "run");
    config.model.tensor_model_parallel_size = tensor;
    config.model.context_parallel_size = context;
    const Layout layout = make_layout(config.model, world);
    const models::Dit model(config.model, at::kFloat, at::kCPU, 1, layout.parallel);
    check_equal_weights(model, layout, world, 5);
    if (world.rank() == 1) flip_last_bit(model, suffix);
    const std::string text = test::error_of([&] { check_equal_weights(model, layout, world, 5); });
    EXPECT_NE(text.find("iteration 5"), std::string::npos) << text;
    EXPECT_NE(text.find(suffix), std::string::npos) << text;
    EXPECT_NE(text.find("rank 0: "), std::string::npos) << text;
    EXPECT_NE(text.find("rank 1: "), std::string::npos) << text;
  }
  // Parts of a split matrix differ by nature.
  TrainConfig config = small_config(folder, "run");
  config.model.tensor_model_parallel_size = 2;
  const Layout layout = make_layout(config.model, world);
  const models::Dit model(config.model, at::kFloat, at::kCPU, 1, layout.parallel);
  if (world.rank() == 1) flip_last_bit(model, "layers.0.mlp.linear_fc2.weight");
  check_equal_weights(model, layout, world, 5);
}

RANK_CASE(not_a_number) {
  const fs::path folder = args.at(0);
  TrainConfig config = small_config(folder, "run");
  config.optimizer.lr = 1e38;
  config.optimizer.min_lr = 0;
  config.optimizer.clip_grad = 0;
  config.scheduler.lr_warmup_iters = 0;
  RunContext context;
  context.world = std::shared_ptr<comm::World>(&world, [](comm::World*) {});
  const std::string text = test::error_of([&] { test::run_tiny(config, context); });
  EXPECT_TRUE(text.starts_with("3 loss of iteration 2")) << text;
  EXPECT_NE(text.find("rank 0: 00"), std::string::npos) << text;
  EXPECT_NE(text.find("rank 1: 00"), std::string::npos) << text;
}

class RankChecks : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_dataset(folder_.path() / "data", 20); }
  test::TempFolder folder_;
};

TEST_F(RankChecks, DriftNamesParameterAndRanks) { test::run_ranks(2, "drift", {folder_.path().string()}); }

TEST_F(RankChecks, ALossThatIsNotANumberNamesRanksStepAndSamples) {
  test::run_ranks(2, "not_a_number", {folder_.path().string()});
}

TEST_F(RankChecks, AGradientThatIsNotANumberNamesTheRow) {
  // A finite loss with an infinite gradient: the modulation is zero in forward (its first matrix is), but what comes
  // back through its huge second matrix overflows.
  TrainConfig config = small_config(folder_.path(), "run");
  config.model.crossattn_emb_size = test::kTextWidth;
  models::NamedTensors weights = models::initial_parameters(config.model, at::kFloat, at::kCPU, 1);
  for (auto& [name, tensor] : weights) {
    if (name == "final_layer_linear.weight") tensor.fill_(1e15);
    if (name.ends_with("adaLN_modulation.1.weight")) tensor.zero_();
    if (name.ends_with("adaLN_modulation.2.weight")) tensor.fill_(1e12);
  }
  const fs::path start = folder_.path() / "start.pt";
  checkpoint::write_tensor_file(start, weights);
  config.checkpoint.pretrained_checkpoint = start;
  const std::string text = test::error_of([&] { test::run_tiny(config); });
  EXPECT_TRUE(text.starts_with("3 gradient norm")) << text;
  EXPECT_NE(text.find("iteration 1"), std::string::npos) << text;
  EXPECT_NE(text.find("samples 00"), std::string::npos) << text;
}

TEST_F(RankChecks, StepsThatAreNotFiniteCanBeSkipped) {
  TrainConfig config = small_config(folder_.path(), "run");
  config.optimizer.lr = 1e38;
  config.optimizer.min_lr = 0;
  config.optimizer.clip_grad = 0;
  config.scheduler.lr_warmup_iters = 0;
  config.train.skip_nonfinite_steps = true;
  const test::TinyResult result = test::run_tiny(config);
  EXPECT_EQ(result.summary.iteration, 6);
  EXPECT_NE(result.output.find("Skipped steps: 5, whose loss or gradient was not finite"), std::string::npos)
      << result.output;
}

}  // namespace
}  // namespace dfm::train
