// `dfm --nproc-per-node N`: the supervisor as a user meets it.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "cli/run_dfm.h"
#include "support/temp_folder.h"

namespace dfm::test {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::string read_all(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// dfm in the background, its output in files; ended when this goes.
class RunningDfm {
 public:
  explicit RunningDfm(const std::vector<std::string>& args) {
    process_ = fork();
    if (process_ != 0) return;
    for (const auto& [name, descriptor] : {std::pair{"out", STDOUT_FILENO}, std::pair{"err", STDERR_FILENO}}) {
      if (std::freopen((folder_ / name).c_str(), "w", descriptor == STDOUT_FILENO ? stdout : stderr) == nullptr)
        _exit(126);
    }
    if (chdir(folder_.path().c_str()) != 0) _exit(126);
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    std::vector<char*> argv{const_cast<char*>(DFM_BINARY)};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    execv(DFM_BINARY, argv.data());
    _exit(127);
  }
  ~RunningDfm() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      waitpid(process_, nullptr, 0);
    }
  }
  RunningDfm(const RunningDfm&) = delete;
  RunningDfm& operator=(const RunningDfm&) = delete;

  [[nodiscard]] pid_t process() const { return process_; }
  [[nodiscard]] std::string output() const { return read_all(folder_ / "out") + read_all(folder_ / "err"); }
  [[nodiscard]] std::vector<pid_t> ranks() const {
    const std::string name = std::to_string(process_);
    std::istringstream stream(read_all("/proc/" + name + "/task/" + name + "/children"));
    return {std::istream_iterator<pid_t>(stream), {}};
  }
  // Until both ranks have begun to write their shards.
  void wait_for_shards() const {
    const auto has_begun = [&](const std::string& start) {
      std::error_code ignored;
      for (const auto& entry : fs::directory_iterator(folder_ / "data", ignored)) {
        if (entry.path().filename().string().starts_with(start)) return true;
      }
      return false;
    };
    for (int i = 0; i < 600 && !(has_begun("rank0") && has_begun("rank1")); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    EXPECT_TRUE(has_begun("rank0") && has_begun("rank1")) << output();
  }
  int wait() {
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  TempFolder folder_;
  pid_t process_ = -1;
};

// So much work that it does not end by itself within the test.
std::vector<std::string> long_prepare() {
  return {"--device",     "cpu", "--nproc-per-node", "2", "prepare", "--input", "synthetic:butterflies:100000",
          "--output-dir", "data"};
}

bool is_gone(pid_t process) {
  for (int i = 0; i < 100; ++i) {
    if (kill(process, 0) != 0) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

TEST(CliRanks, BadNumbersOfRanksAreConfigErrors) {
  for (const std::string value : {"0", "x", "-1", "1.5", "", "100000"}) {
    const Finished finished = run_dfm({"--nproc-per-node", value, "train"});
    EXPECT_EQ(finished.exit_code, 2) << value;
    EXPECT_EQ(finished.err,
              "dfm: error: --nproc-per-node: got '" + value + "', want an integer from 1 to 1024 (command line)\n");
  }
}

TEST(CliRanks, OneLauncherIsEnough) {
  setenv("RANK", "0", 1);
  setenv("WORLD_SIZE", "1", 1);
  const Finished finished = run_dfm({"--nproc_per_node=2", "train"});
  unsetenv("RANK");
  unsetenv("WORLD_SIZE");
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_EQ(finished.err,
            "dfm: error: --nproc-per-node: got 2 in a process that torchrun has started (rank 0 of 1), want one "
            "launcher (command line); hint: leave it out\n");
}

TEST(CliRanks, HelpIsPrintedOnce) {
  EXPECT_EQ(run_dfm({"--nproc-per-node", "4", "train", "--help"}).out, run_dfm({"train", "--help"}).out);
}

TEST(CliRanks, MistakesOfAllRanksArePrintedOnce) {
  const Finished finished = run_dfm({"--nproc-per-node", "3", "train", "--recipe", "demo", "model.hiden_size=4"});
  EXPECT_EQ(finished.exit_code, 2);
  ASSERT_EQ(lines_of(finished.err).size(), 1u) << finished.err;
  EXPECT_EQ(finished.err.substr(0, 1), "[");
  EXPECT_EQ(finished.err.substr(2),
            "] dfm train: error: model.hiden_size: got no such option, want one of the section's (command line); hint: "
            "did you mean 'model.hidden_size'\n");
}

TEST(CliRanks, FailuresAfterTheRanksHaveMetArePrintedOnce) {
  const Finished finished =
      run_dfm({"--device", "cpu", "--nproc-per-node", "2", "prepare", "--input", "/nonexistent/pictures",
               "--output-dir", "data", "--tokenizer", "builtin", "--text-encoder", "builtin"});
  EXPECT_EQ(finished.exit_code, 3) << finished.err;
  const auto lines = lines_of(finished.err);
  EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                          [](const std::string& line) { return line.find("error: ") != std::string::npos; }),
            1)
      << finished.err;
}

TEST(CliRanks, PrepareRunsOnTwo) {
  const Finished finished = run_dfm({"--device", "cpu", "--nproc-per-node", "2", "prepare", "--input",
                                     "synthetic:butterflies:6", "--output-dir", "data"});
  EXPECT_EQ(finished.exit_code, 0) << finished.err;
  for (const std::string& line : lines_of(finished.out + finished.err)) {
    EXPECT_TRUE(line.starts_with("[0] ") || line.starts_with("[1] ")) << line;
  }
}

TEST(CliRanks, AKilledRankEndsTheOthers) {
  RunningDfm dfm(long_prepare());
  dfm.wait_for_shards();
  const auto ranks = dfm.ranks();
  ASSERT_EQ(ranks.size(), 2u);
  kill(ranks[1], SIGKILL);
  EXPECT_EQ(dfm.wait(), 5);
  EXPECT_NE(dfm.output().find("dfm prepare: error: rank 1 (pid " + std::to_string(ranks[1])), std::string::npos)
      << dfm.output();
}

TEST(CliRanks, SignalsReachAllRanks) {
  RunningDfm dfm(long_prepare());
  dfm.wait_for_shards();
  const auto ranks = dfm.ranks();
  kill(dfm.process(), SIGTERM);
  EXPECT_EQ(dfm.wait(), 143) << dfm.output();
  for (const pid_t rank : ranks) EXPECT_TRUE(is_gone(rank));
}

TEST(CliRanks, DieWithTheirSupervisor) {
  RunningDfm dfm(long_prepare());
  dfm.wait_for_shards();
  const auto ranks = dfm.ranks();
  ASSERT_EQ(ranks.size(), 2u);
  kill(dfm.process(), SIGKILL);
  dfm.wait();
  for (const pid_t rank : ranks) EXPECT_TRUE(is_gone(rank));
}

}  // namespace
}  // namespace dfm::test
