// Checkpoints carry a run from any layout to any other: the same samples, noise and dropout, the same losses.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/train/metrics.h"
#include "support/ranks.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

TrainConfig small_config(const fs::path& folder, const std::string& run) {
  TrainConfig config = test::tiny_config(folder / "data", folder / run);
  config.model.hidden_size = 64;
  config.model.num_attention_heads = 4;
  config.train.global_batch_size = 7;
  config.dataset.task_encoder_seq_length = 64;
  config.ddp.bucket_size = 30000;
  return config;
}

// One leg of a relay: to `steps` steps in all, in a layout of this many ranks.
struct Leg {
  std::int64_t steps, tensor, context;
  bool sequence, zero;
};

std::vector<double> run_leg(const fs::path& folder, const std::string& run, const Leg& leg, comm::World& world) {
  TrainConfig config = small_config(folder, run);
  config.train.train_iters = leg.steps;
  config.model.tensor_model_parallel_size = leg.tensor;
  config.model.context_parallel_size = leg.context;
  config.model.sequence_parallel = leg.sequence;
  config.ddp.use_distributed_optimizer = leg.zero;
  RunContext context;
  context.world = std::shared_ptr<comm::World>(&world, [](comm::World*) {});
  return test::run_tiny(config, context).losses;
}

std::vector<nlohmann::json> metrics_in(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / MetricsFile::kFileName);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

void expect_same_run(const fs::path& got, const fs::path& want, double tolerance) {
  const auto a = metrics_in(got), b = metrics_in(want);
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i]["iteration"], b[i]["iteration"]);
    EXPECT_EQ(a[i]["consumed_samples"], b[i]["consumed_samples"]);
    EXPECT_EQ(a[i]["tokens"], b[i]["tokens"]);
    const double loss = b[i]["loss"];
    EXPECT_NEAR(static_cast<double>(a[i]["loss"]), loss, loss * tolerance) << "iteration " << i + 1;
  }
}

RANK_CASE(relay) {
  const fs::path folder = args.at(0);
  const std::vector<Leg> legs = world.size() == 4 ? std::vector<Leg>{{4, 4, 1, false, true},
                                                                     {8, 1, 2, false, true},
                                                                     {12, 1, 1, false, false},
                                                                     {16, 2, 2, true, true}}
                                                  : std::vector<Leg>{{20, 2, 1, true, true}, {24, 1, 1, false, true}};
  for (const Leg& leg : legs) run_leg(folder, "relay", leg, world);
}

// The same layout goes on bit for bit.
RANK_CASE(same_layout) {
  const fs::path folder = args.at(0);
  int number = 0;
  for (const auto& [tensor, context] : {std::pair<std::int64_t, std::int64_t>{2, 1}, {1, 2}, {1, 1}}) {
    const std::string whole = fmt::format("whole_{}", number), half = fmt::format("half_{}", number++);
    const std::vector<double> want = run_leg(folder, whole, {8, tensor, context, false, true}, world);
    std::vector<double> got = run_leg(folder, half, {4, tensor, context, false, true}, world);
    const std::vector<double> rest = run_leg(folder, half, {8, tensor, context, false, true}, world);
    got.insert(got.end(), rest.begin(), rest.end());
    EXPECT_EQ(got, want) << tensor << " " << context;
  }
}

// A blend: ranks read shares of the same order.
RANK_CASE(blend) {
  const fs::path folder = args.at(0);
  TrainConfig config = small_config(folder, "blend_ranks");
  config.dataset.path.clear();
  config.dataset.blend = {"0.7", folder / "data", "0.3", folder / "more"};
  config.train.train_iters = 4;
  RunContext context;
  context.world = std::shared_ptr<comm::World>(&world, [](comm::World*) {});
  test::run_tiny(config, context);
}

class LayoutResume : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_dataset(folder_.path() / "data", 20); }
  test::TempFolder folder_;
};

TEST_F(LayoutResume, AnyLayoutContinuesAnyOther) {
  run_leg(folder_.path(), "one", {28, 1, 1, false, true}, *comm::World::solo());
  test::run_ranks(4, "relay", {folder_.path().string()});
  test::run_ranks(2, "relay", {folder_.path().string()});
  run_leg(folder_.path(), "relay", {28, 1, 1, false, true}, *comm::World::solo());
  expect_same_run(folder_.path() / "relay", folder_.path() / "one", 1e-6);
}

TEST_F(LayoutResume, TheSameLayoutContinuesBitForBit) { test::run_ranks(2, "same_layout", {folder_.path().string()}); }

TEST_F(LayoutResume, ABlendIsTheSameOnTwoDataRanks) {
  test::write_tiny_dataset(folder_.path() / "more", 6, 3);
  test::run_ranks(2, "blend", {folder_.path().string()});
  TrainConfig config = small_config(folder_.path(), "blend_alone");
  config.dataset.path.clear();
  config.dataset.blend = {"0.7", folder_.path() / "data", "0.3", folder_.path() / "more"};
  config.train.train_iters = 4;
  test::run_tiny(config);
  expect_same_run(folder_.path() / "blend_ranks", folder_.path() / "blend_alone", 1e-6);
}

TEST_F(LayoutResume, AnotherGlobalBatchSizeContinuesAtTheStoredPosition) {
  TrainConfig config = small_config(folder_.path(), "run");
  config.train.train_iters = 3;
  test::run_tiny(config);
  config.train.train_iters = 5;
  config.train.global_batch_size = 4;
  RunContext context;
  context.explicit_options = {{"train.global_batch_size", "command line"}};
  test::run_tiny(config, context);
  const auto lines = metrics_in(folder_.path() / "run");
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[2]["consumed_samples"], 21);
  EXPECT_EQ(lines[3]["consumed_samples"], 25);
  EXPECT_EQ(lines[4]["consumed_samples"], 29);
}

}  // namespace
}  // namespace dfm::train
