#include "dfm/train/trainer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/train/metrics.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;
using test::run_tiny;
using test::tiny_config;

class Trainer : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    data_ = std::make_unique<test::TempFolder>();
    test::write_tiny_dataset(data_->path() / "data", 20);
  }
  static void TearDownTestSuite() { data_.reset(); }
  [[nodiscard]] TrainConfig config(const std::string& run) const {
    return tiny_config(data_->path() / "data", folder_.path() / run);
  }
  static std::unique_ptr<test::TempFolder> data_;
  test::TempFolder folder_;
};
std::unique_ptr<test::TempFolder> Trainer::data_;

std::vector<nlohmann::json> metrics_in(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / MetricsFile::kFileName);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

void expect_same_tensors(const fs::path& got, const fs::path& want) {
  const checkpoint::NamedTensors a = checkpoint::TensorFile(got).read_all();
  const checkpoint::NamedTensors b = checkpoint::TensorFile(want).read_all();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(at::equal(a[i].second, b[i].second)) << a[i].first << " in " << got;
  }
}

TEST_F(Trainer, LossCurveDoesNotDependOnPackingOrWorkers) {
  for (const auto& [precision, tolerance] : {std::pair{Precision::kFp32, 1e-6}, {Precision::kFp64, 1e-11}}) {
    std::vector<double> want;
    int number = 0;
    for (const auto& [max_tokens, max_samples, workers] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1024, 0, 2}, {48, 0, 1}, {1024, 1, 3}, {96, 2, 1}}) {
      TrainConfig one = config(fmt::format("{}_{}", config::enum_name(precision), number++));
      one.mixed_precision = precision;
      one.train.train_iters = 24;
      one.dataset.task_encoder_seq_length = max_tokens;
      if (max_samples > 0) one.train.micro_batch_size = max_samples;
      one.dataset.num_workers = workers;
      const std::vector<double> got = run_tiny(one).losses;
      ASSERT_EQ(got.size(), 24U);
      if (want.empty()) want = got;
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_NEAR(got[i], want[i], want[i] * tolerance) << "step " << i + 1 << ", " << max_tokens << " tokens a row";
    }
    EXPECT_NE(want.front(), want.back());
  }
}

TEST_F(Trainer, WritesTheRunFolder) {
  TrainConfig one = config("run");
  one.checkpoint.save_interval = 4;
  one.logger.log_interval = 2;
  const test::TinyResult result = run_tiny(one);
  EXPECT_EQ(result.summary.iteration, 6);
  EXPECT_EQ(result.summary.exit_code, ExitCode::kOk);
  const auto iterations = checkpoint::complete_iterations(folder_.path() / "run");
  ASSERT_EQ(iterations.size(), 2U);
  EXPECT_EQ(iterations[0].iteration, 4);
  EXPECT_EQ(iterations[1].path, result.summary.checkpoint);
  for (const char* name : {"model_weights.pt", "optimizer_states.pt", "extra_state.pt", "run_config.yaml", "model.pth"})
    EXPECT_TRUE(fs::exists(iterations[1].path / name)) << name;
  EXPECT_EQ(fs::read_symlink(iterations[1].path / "model.pth"), "model_weights.pt");
  EXPECT_TRUE(fs::exists(folder_.path() / "run" / "loss.svg"));
  EXPECT_FALSE(fs::is_empty(folder_.path() / "run" / "tb_logs"));

  const auto lines = metrics_in(folder_.path() / "run");
  ASSERT_EQ(lines.size(), 6U);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["iteration"], i + 1);
    EXPECT_NEAR(lines[i]["loss"], result.losses[i], 1e-8);
    EXPECT_EQ(lines[i]["consumed_samples"], 6 * (i + 1));
    for (const char* key : {"grad_norm", "learning_rate", "tokens", "seconds"}) EXPECT_TRUE(lines[i][key] >= 0) << key;
  }
  EXPECT_NE(result.output.find("Training a DiT: 2 layers, width 32, 2 heads"), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("Iteration 4/6, Loss: "), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("Loss curve: "), std::string::npos);
}

TEST_F(Trainer, WeightFileHasDfmsNamesInTheComputeDtype) {
  TrainConfig one = config("bf16");
  one.mixed_precision = Precision::kBf16Mixed;
  one.train.train_iters = 2;
  const fs::path folder = run_tiny(one).summary.checkpoint;
  bool has_table = false;
  const checkpoint::TensorFile weights(folder / "model_weights.pt");
  for (const auto& entry : weights.entries()) {
    EXPECT_FALSE(entry.name.starts_with("module."));
    EXPECT_EQ(entry.dtype, at::kBFloat16) << entry.name;
    has_table = has_table || entry.name.starts_with("pos_embedder");
  }
  EXPECT_TRUE(has_table);
  const checkpoint::TensorFile state(folder / "optimizer_states.pt");
  for (const auto& entry : state.entries()) {
    EXPECT_TRUE(entry.name.starts_with("optimizer.state."));
    EXPECT_EQ(entry.dtype, at::kFloat) << entry.name;
  }
}

TEST_F(Trainer, NPlusNStepsEqualTwoNBitForBit) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16Mixed}) {
    const std::string name(config::enum_name(precision));
    TrainConfig whole = config(name + "_whole");
    whole.mixed_precision = precision;
    whole.train.train_iters = 10;
    const test::TinyResult want = run_tiny(whole);

    TrainConfig half = config(name + "_half");
    half.mixed_precision = precision;
    half.train.train_iters = 5;
    std::vector<double> losses = run_tiny(half).losses;
    half.train.train_iters = 10;
    const test::TinyResult second = run_tiny(half);
    EXPECT_TRUE(second.output.starts_with("Continuing from ")) << second.output;
    losses.insert(losses.end(), second.losses.begin(), second.losses.end());
    EXPECT_EQ(losses, want.losses);
    for (const char* file : {"model_weights.pt", "optimizer_states.pt"})
      expect_same_tensors(second.summary.checkpoint / file, want.summary.checkpoint / file);
    EXPECT_EQ(metrics_in(folder_.path() / (name + "_half")).size(), 10U);
  }
}

TEST_F(Trainer, SaysWhenThereIsNothingLeftToDo) {
  const TrainConfig one = config("run");
  run_tiny(one);
  const test::TinyResult again = run_tiny(one);
  EXPECT_EQ(again.summary.exit_code, ExitCode::kOk);
  EXPECT_EQ(again.summary.steps, 0);
  EXPECT_NE(again.output.find("Already at iteration 6 of train.train_iters=6"), std::string::npos) << again.output;
  EXPECT_EQ(metrics_in(folder_.path() / "run").size(), 6U);
}

TEST_F(Trainer, FinishesTheStepAndSavesOnASignal) {
  const test::TinyResult want = run_tiny(config("whole"));
  for (const auto& [signal, code] : {std::pair{SIGTERM, ExitCode::kTerminated}, {SIGINT, ExitCode::kInterrupted}}) {
    const TrainConfig one = config(fmt::format("signal_{}", signal));
    RunContext context;
    context.on_step = [number = signal](std::int64_t iteration, double) {
      if (iteration == 3) raise(number);
    };
    const test::TinyResult first = run_tiny(one, context);
    EXPECT_EQ(first.summary.exit_code, code);
    EXPECT_EQ(first.summary.iteration, 3);
    EXPECT_EQ(first.summary.checkpoint.filename(), "iter_0000003");
    const test::TinyResult second = run_tiny(one);
    EXPECT_EQ(second.summary.iteration, 6);
    EXPECT_EQ(second.losses, std::vector<double>(want.losses.begin() + 3, want.losses.end()));
  }
}

TEST_F(Trainer, StopsAtALossThatIsNotANumberAndNamesTheSamples) {
  TrainConfig one = config("run");
  one.optimizer.lr = 1e38;
  one.optimizer.min_lr = 0;
  one.optimizer.clip_grad = 0;
  one.scheduler.lr_warmup_iters = 0;
  try {
    run_tiny(one);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.code(), ExitCode::kData);
    EXPECT_NE(text.find("of iteration 2"), std::string::npos) << text;
    EXPECT_NE(text.find("samples 0000"), std::string::npos) << text;
  }
  EXPECT_TRUE(checkpoint::complete_iterations(folder_.path() / "run").empty());
}

TEST_F(Trainer, LearnsTheData) {
  TrainConfig one = config("run");
  one.train.train_iters = 60;
  one.scheduler.lr_decay_iters = 60;
  one.optimizer.lr = 5e-3;
  const std::vector<double> losses = run_tiny(one).losses;
  const auto mean = [&](std::size_t first) {
    double sum = 0;
    for (std::size_t i = first; i < first + 15; ++i) sum += losses[i];
    return sum / 15;
  };
  EXPECT_LT(mean(45), 0.97 * mean(0));
}

}  // namespace
}  // namespace dfm::train
