// Ranks under launchers that others have written: torchrun with its agent's store, and Open MPI.
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <signal.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <thread>

#include "dfm/comm/failure.h"
#include "dfm/comm/world.h"
#include "support/ranks.h"

namespace dfm::test {
namespace {

struct Ran {
  int exit_code = -1;
  std::string output;
};

Ran run_shell(const std::string& command) {
  Ran ran;
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  for (std::size_t got; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
    ran.output.append(buffer.data(), got);
  ran.exit_code = WEXITSTATUS(pclose(pipe));
  return ran;
}

std::string this_program() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

// Where CI runs all launchers are there; elsewhere one may be missing.
bool is_there(const std::string& launcher) {
  const bool found = run_shell("command -v " + launcher).exit_code == 0;
  const char* ci = std::getenv("CI");
  EXPECT_TRUE(found || ci == nullptr) << launcher << " is missing; script/bootstrap --tests installs it";
  return found;
}

RANK_CASE(says_hello) {
  world.all()->barrier();
  const auto texts = world.gather_text(world.launch().launcher + std::to_string(world.launch().local_world_size));
  if (world.is_first()) fmt::print("hello from {}\n", fmt::join(texts, " "));
}

TEST(Launchers, Torchrun) {
  const std::string torchrun = std::string(DFM_TEST_PYTHON) + " -m torch.distributed.run";
  if (!is_there(DFM_TEST_PYTHON)) GTEST_SKIP() << "no Python";
  const Ran ran = run_shell("OMP_NUM_THREADS=1 " + torchrun + " --no-python --standalone --nproc-per-node 2 " +
                            this_program() + " --rank-case says_hello");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_NE(ran.output.find("hello from torchrun2 torchrun2\n"), std::string::npos) << ran.output;
}

TEST(Launchers, OpenMpi) {
  if (!is_there("mpirun")) GTEST_SKIP() << "no mpirun";
  const Ran ran =
      run_shell("mpirun --allow-run-as-root --oversubscribe -np 2 " + this_program() + " --rank-case says_hello");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_NE(ran.output.find("hello from mpirun2 mpirun2\n"), std::string::npos) << ran.output;
}

// Slurm's environment, as srun sets it; there is no Slurm here.
TEST(Launchers, SlurmsEnvironment) {
  std::string command;
  for (const char* rank : {"1", "0"}) {
    command += std::string("env -u MASTER_ADDR -u MASTER_PORT SLURM_JOB_ID=$$ SLURM_STEP_ID=3 SLURM_NTASKS=2 ") +
               "SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=nowhere7 SLURM_PROCID=" + rank +
               " SLURM_LOCALID=" + rank + " " + this_program() + " --rank-case says_hello & p" + rank + "=$!; ";
  }
  const Ran ran = run_shell(command + "wait $p0 && wait $p1");
  EXPECT_EQ(ran.exit_code, 0) << ran.output;
  EXPECT_NE(ran.output.find("hello from srun2 srun2\n"), std::string::npos) << ran.output;
}

// All ranks find the same mistake, before or after they have met, or rank 1 alone does. As dfm's main() does, one
// prints it, but a second later.
RAW_RANK_CASE(makes_a_mistake) {
  const comm::Launch launch = comm::read_launch();
  if (args.at(0) != "before") comm::World::join(launch, {.command = "test"});
  while (args.at(0) == "alone" && launch.rank != 1) std::this_thread::sleep_for(std::chrono::seconds(1));
  const std::string line = "model.num_layers: got 0, want a value > 0";
  const comm::Claim claim = comm::claim_failure(launch, ExitCode::kConfig, line);
  if (claim.is_first) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    fmt::print(stderr, "dfm test: error: {}{}\n", claim.label, line);
  }
  comm::end_failed(launch, claim.cause);
}

std::vector<std::string> mistakes_in(const std::string& output) {
  std::vector<std::string> lines;
  std::istringstream stream(output);
  for (std::string line; std::getline(stream, line);) {
    if (line.find("dfm test: error: ") != std::string::npos) lines.push_back(line);
  }
  return lines;
}

std::vector<std::string> the_mistake(const std::string& of = "") {
  return {"dfm test: error: " + of + "model.num_layers: got 0, want a value > 0"};
}

TEST(Launchers, TorchrunShowsTheLineOnce) {
  if (!is_there(DFM_TEST_PYTHON)) GTEST_SKIP() << "no Python";
  const std::string torchrun = std::string(DFM_TEST_PYTHON) + " -m torch.distributed.run";
  const Ran ran = run_shell("OMP_NUM_THREADS=1 " + torchrun + " --no-python --standalone --nproc-per-node 3 " +
                            this_program() + " --rank-case makes_a_mistake after");
  EXPECT_EQ(mistakes_in(ran.output), the_mistake()) << ran.output;
}

TEST(Launchers, OneThatKillsAllAtTheFirstExitShowsTheLineOnce) {
  for (const std::string when : {"before", "after", "alone"}) {
    RankOptions options;
    options.meanwhile = [](const std::map<int, int>& processes) {
      if (processes.size() == 3) return;
      for (const auto& [rank, process] : processes) kill(process, SIGKILL);
    };
    std::string output;
    for (const RankResult& result : launch_ranks(3, "makes_a_mistake", {when}, options)) output += result.output;
    EXPECT_EQ(mistakes_in(output), the_mistake(when == "alone" ? "rank 1: " : "")) << output;
  }
}

}  // namespace
}  // namespace dfm::test
