// A real `dfm train` process that is told to stop: needs the binary, whose path CMake gives.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/train/metrics.h"
#include "train/process.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

using test::Process;

std::size_t lines_in(const fs::path& path) {
  std::ifstream in(path);
  std::size_t lines = 0;
  for (std::string line; std::getline(in, line);) ++lines;
  return lines;
}

class KilledTraining : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_dataset(folder_.path() / "data", 20); }
  [[nodiscard]] fs::path run_folder() const { return folder_.path() / "run"; }
  [[nodiscard]] Process start(const std::string& steps, const std::string& interval) const {
    return Process(
        {"train", "--recipe", "demo", "--device", "cpu", "--dataset-path", (folder_.path() / "data").string(),
         "checkpoint.save=" + run_folder().string(), "model.num_layers=2", "model.hidden_size=64",
         "model.num_attention_heads=2", "train.train_iters=" + steps, "checkpoint.save_interval=" + interval},
        folder_.path() / "log");
  }
  // Until `count` steps are in metrics.jsonl; false after a minute.
  [[nodiscard]] bool wait_for_steps(std::size_t count) const {
    for (int i = 0; i < 6000; ++i) {
      if (lines_in(run_folder() / MetricsFile::kFileName) >= count) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  [[nodiscard]] std::string log() const {
    std::ifstream in(folder_.path() / "log");
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  test::TempFolder folder_;
};

TEST_F(KilledTraining, SavesOnSigtermAndContinues) {
  const Process first = start("1000000", "0");
  ASSERT_TRUE(wait_for_steps(3)) << log();
  first.signal(SIGTERM);
  EXPECT_EQ(first.wait(), 143) << log();
  const auto saved = checkpoint::complete_iterations(run_folder());
  ASSERT_EQ(saved.size(), 1U) << log();
  const std::int64_t done = saved[0].iteration;
  EXPECT_EQ(lines_in(run_folder() / MetricsFile::kFileName), static_cast<std::size_t>(done));
  EXPECT_EQ(start(std::to_string(done + 2), "0").wait(), 0) << log();
  EXPECT_EQ(checkpoint::complete_iterations(run_folder()).back().iteration, done + 2);
}

TEST_F(KilledTraining, NothingThatAKillInterruptsLooksComplete) {
  // Saving takes most of the time of this run, so that a kill is likely to hit it.
  const Process first = start("1000000", "1");
  ASSERT_TRUE(wait_for_steps(4)) << log();
  first.signal(SIGKILL);
  EXPECT_EQ(first.wait(), 137);
  const auto saved = checkpoint::complete_iterations(run_folder());
  ASSERT_FALSE(saved.empty());
  const std::int64_t done = saved.back().iteration;
  EXPECT_EQ(start(std::to_string(done + 1), "0").wait(), 0) << log();
  EXPECT_EQ(lines_in(run_folder() / MetricsFile::kFileName), static_cast<std::size_t>(done + 1));
}

}  // namespace
}  // namespace dfm::train
