// Random ranks of real runs are killed at random moments, also while they save: the run always ends by itself, what it
// leaves is never a damaged checkpoint taken for whole, and the same command, in any layout, goes on from there.
// DFM_KILLS: how many (default 5); DFM_KILL_SEED: of the moments (default: the clock), printed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/train/metrics.h"
#include "train/process.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSaveInterval = 2;

unsigned number_from(const char* name, unsigned otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : static_cast<unsigned>(std::stoul(text));
}

std::vector<pid_t> children_of(pid_t parent) {
  std::ifstream in(fmt::format("/proc/{0}/task/{0}/children", parent));
  std::vector<pid_t> children;
  for (pid_t child = 0; in >> child;) children.push_back(child);
  return children;
}

std::vector<nlohmann::json> metrics_in(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / MetricsFile::kFileName);
  for (std::string line; std::getline(in, line);) {
    auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_object()) lines.push_back(std::move(json));  // the last may be cut
  }
  return lines;
}

class KilledRanks : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_dataset(folder_.path() / "data", 20); }
  [[nodiscard]] fs::path run_folder() const { return folder_.path() / "run"; }

  [[nodiscard]] test::Process start(int ranks, std::vector<std::string> layout, std::int64_t steps,
                                    const fs::path& run) const {
    std::vector<std::string> arguments;
    if (ranks > 1) arguments = {"--nproc-per-node", std::to_string(ranks)};
    arguments.insert(
        arguments.end(),
        {"train", "--recipe", "demo", "--device", "cpu", "--dataset-path", (folder_.path() / "data").string(),
         "checkpoint.save=" + run.string(), "model.num_layers=2", "model.hidden_size=64", "model.num_attention_heads=4",
         "checkpoint.most_recent_k=3", "scheduler.lr_decay_style=constant",
         "train.train_iters=" + std::to_string(steps), fmt::format("checkpoint.save_interval={}", kSaveInterval)});
    arguments.insert(arguments.end(), layout.begin(), layout.end());
    return test::Process(arguments, folder_.path() / "log");
  }

  // Until a step after `done` is in metrics.jsonl, or the process has ended, or a minute has passed.
  void wait_for_progress(std::int64_t done) const {
    for (int i = 0; i < 6000; ++i) {
      const auto lines = metrics_in(run_folder());
      if (!lines.empty() && lines.back()["iteration"] > done) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  [[nodiscard]] std::int64_t newest() const {
    const auto complete = checkpoint::complete_iterations(run_folder());
    return complete.empty() ? 0 : complete.back().iteration;
  }
  [[nodiscard]] std::string log() const {
    std::ifstream in(folder_.path() / "log");
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  test::TempFolder folder_;
};

TEST_F(KilledRanks, NeverHangAndLoseAtMostOneSaveInterval) {
  const unsigned kills = number_from("DFM_KILLS", 5);
  const unsigned seed = number_from("DFM_KILL_SEED", std::random_device()());
  fmt::print("{} kills, DFM_KILL_SEED={}\n", kills, seed);
  std::mt19937 random(seed);
  const std::vector<std::pair<int, std::vector<std::string>>> layouts = {
      {4, {"model.tensor_model_parallel_size=2"}},
      {2, {"model.context_parallel_size=2"}},
      {4, {"model.tensor_model_parallel_size=2", "model.sequence_parallel=true", "model.context_parallel_size=2"}},
      {3, {}},
      {2, {"model.tensor_model_parallel_size=2"}},
  };
  for (unsigned kill_number = 0; kill_number < kills; ++kill_number) {
    const auto& [ranks, layout] = layouts[random() % layouts.size()];
    const auto before = metrics_in(run_folder());
    const test::Process run = start(ranks, layout, 1000000, run_folder());
    // One in four is killed while it starts, the others once they have made a new step.
    if (random() % 4 != 0) wait_for_progress(before.empty() ? 0 : before.back()["iteration"].get<std::int64_t>());
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500000));
    std::vector<pid_t> children = children_of(run.id());
    for (int i = 0; i < 1000 && children.size() < static_cast<std::size_t>(ranks); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      children = children_of(run.id());
    }
    ASSERT_EQ(children.size(), static_cast<std::size_t>(ranks)) << log();
    const pid_t victim = children[random() % children.size()];
    const auto lines = metrics_in(run_folder());
    kill(victim, SIGKILL);
    const auto began = std::chrono::steady_clock::now();
    const std::optional<int> code = run.wait_for(20);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    ASSERT_TRUE(code.has_value()) << "kill " << kill_number << ": the run hangs\n" << log();
    EXPECT_EQ(*code, 5) << log();
    EXPECT_LT(seconds, 10) << "kill " << kill_number;
    for (const auto& folder : checkpoint::complete_iterations(run_folder())) checkpoint::verify_iteration(folder.path);
    const std::int64_t reached = lines.empty() ? 0 : lines.back()["iteration"].get<std::int64_t>();
    EXPECT_GE(newest(), reached - kSaveInterval) << "kill " << kill_number;
    fmt::print("kill {}: rank process {} of {} ranks, ended after {:.1f} s with {}, newest checkpoint {}\n",
               kill_number, victim, ranks, seconds, *code, newest());
  }
  // What is left is the run that one rank would have made.
  const std::int64_t steps = newest() + 3;
  EXPECT_EQ(start(1, {}, steps, run_folder()).wait(), 0) << log();
  EXPECT_EQ(start(1, {}, steps, folder_.path() / "one").wait(), 0) << log();
  const auto got = metrics_in(run_folder()), want = metrics_in(folder_.path() / "one");
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double loss = want[i]["loss"];
    EXPECT_EQ(got[i]["iteration"], i + 1);
    EXPECT_EQ(got[i]["consumed_samples"], want[i]["consumed_samples"]);
    EXPECT_NEAR(static_cast<double>(got[i]["loss"]), loss, 1e-5 * loss) << "iteration " << i + 1;
  }
}

}  // namespace
}  // namespace dfm::train
