// `dfm --nproc-per-node N`: the supervisor as a user meets it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
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
              "dfm: error: --nproc-per-node: got '" + value +
                  "', want an integer from 1 to 1024 (command line); hint: dfm --nproc-per-node 4 train ... starts 4 "
                  "ranks on this machine\n");
  }
}

TEST(CliRanks, FlagsInTheWrongPlaceAreExplained) {
  EXPECT_EQ(run_dfm({"train", "--nproc-per-node", "2"}).err,
            "dfm train: error: --nproc-per-node: got it after the subcommand, want it before (command line); hint: dfm "
            "--nproc-per-node N train ...\n");
  EXPECT_EQ(run_dfm({"-np", "2", "train"}).err,
            "dfm: error: -np: got no such flag before the subcommand, want one of --nproc-per-node N, --device NAME, "
            "--verbose (command line); hint: dfm --nproc-per-node N starts N ranks on this machine\n");
  // The value is missing: the subcommand's name is not it.
  EXPECT_NE(run_dfm({"--nproc-per-node", "train"}).err.find("--nproc-per-node: got 'train', want"), std::string::npos);
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

// ---- bad input to a job of several ranks: one line, all ranks end, the right exit code
// ---------------------------------

// A small data set, made once for all tests.
class CliRanksTraining : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<TempFolder>();
    const Finished finished =
        run_dfm({"--device", "cpu", "prepare", "--input", "synthetic:butterflies:8", "--output-dir", data()});
    ASSERT_EQ(finished.exit_code, 0) << finished.err;
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::string data() { return (*folder_ / "data").string(); }
  static std::vector<std::string> train(const std::string& save, const std::vector<std::string>& more = {}) {
    std::vector<std::string> args{"train", "--device", "cpu", "--recipe", "demo", "--dataset-path", data()};
    args.push_back("checkpoint.save=" + save);
    args.insert(args.end(), {"model.num_layers=1", "train.train_iters=2"});
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  static std::vector<std::string> on_two(std::vector<std::string> args) {
    args.insert(args.begin(), {"--nproc-per-node", "2"});
    return args;
  }

  static std::unique_ptr<TempFolder> folder_;
};
std::unique_ptr<TempFolder> CliRanksTraining::folder_;

// `error` comes after "dfm train: error: ", at the start of the one line.
void expect_one_error(const Finished& finished, int exit_code, const std::string& error) {
  EXPECT_EQ(finished.exit_code, exit_code) << finished.err;
  std::vector<std::string> errors;
  for (const std::string& line : lines_of(finished.err)) {
    const std::string mark = "dfm train: error: ";
    if (const auto at = line.find(mark); at != std::string::npos) errors.push_back(line.substr(at + mark.size()));
  }
  ASSERT_EQ(errors.size(), 1u) << finished.err;
  EXPECT_EQ(errors[0].substr(0, error.size()), error);
}

TEST_F(CliRanksTraining, RefusesALayoutThatTheNumberOfRanksDoesNotFit) {
  const Finished finished = run_dfm(on_two(train("run", {"model.context_parallel_size=3"})));
  expect_one_error(finished, 2, "layout: got 2 ranks for tensor 1 x context 3 x pipeline 1 = 3, want a multiple of 3");
}

TEST_F(CliRanksTraining, NamesWhatIsMissing) {
  const TempFolder none;
  expect_one_error(run_dfm(on_two(train("run", {"dataset.path=" + (none / "none").string()}))), 3,
                   "data set " + (none / "none").string() + ": got no such folder");
  expect_one_error(run_dfm(on_two(train("run", {"checkpoint.load=" + (none / "none").string()}))), 4,
                   "checkpoint " + (none / "none").string() + ": got a path that does not exist");
  expect_one_error(run_dfm(on_two(train("/proc/no-run"))), 4, "run folder /proc/no-run: cannot make it: ");
}

// Ranks started by hand, each with its own program and options; what all have printed, and the exit code of each.
struct HandStarted {
  std::vector<int> exit_codes;
  Finished all;  // with the greatest exit code
};
HandStarted start_by_hand(const std::vector<std::pair<std::string, std::vector<std::string>>>& ranks) {
  const TempFolder folder;
  std::vector<pid_t> processes;
  const int port = 20000 + getpid() % 10000;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const pid_t process = fork();
    if (process == 0) {
      setenv("RANK", std::to_string(rank).c_str(), 1);
      setenv("WORLD_SIZE", std::to_string(ranks.size()).c_str(), 1);
      setenv("MASTER_PORT", std::to_string(port).c_str(), 1);
      setenv("CUDA_VISIBLE_DEVICES", "", 1);
      if (chdir(folder.path().c_str()) != 0 || std::freopen(std::to_string(rank).c_str(), "w", stderr) == nullptr ||
          std::freopen("/dev/null", "w", stdout) == nullptr)
        _exit(126);
      std::vector<char*> argv{const_cast<char*>("dfm")};
      for (const std::string& arg : ranks[rank].second) argv.push_back(const_cast<char*>(arg.c_str()));
      argv.push_back(nullptr);
      execv(ranks[rank].first.c_str(), argv.data());
      _exit(127);
    }
    processes.push_back(process);
  }
  HandStarted ran;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    int status = 0;
    waitpid(processes[rank], &status, 0);
    ran.exit_codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    ran.all.exit_code = std::max(ran.all.exit_code, ran.exit_codes.back());
    ran.all.err += read_all(folder / std::to_string(rank));
  }
  return ran;
}

TEST_F(CliRanksTraining, RefusesRanksThatDiffer) {
  const TempFolder folder;
  const std::string save = (folder / "run").string();
  const HandStarted options =
      start_by_hand({{DFM_BINARY, train(save)}, {DFM_BINARY, train(save, {"optimizer.lr=0.5"})}});
  EXPECT_EQ(options.exit_codes, (std::vector<int>{5, 5}));
  expect_one_error(options.all, 5, "configuration: got 'lr: 0.5' on rank 1, want 'lr: ");

  const HandStarted typo = start_by_hand({{DFM_BINARY, train(save)}, {DFM_BINARY, train(save, {"optimizer.lrr=1"})}});
  EXPECT_EQ(typo.exit_codes, (std::vector<int>{2, 2}));
  expect_one_error(typo.all, 2, "optimizer.lrr: got no such option");

  const fs::path other = folder / "other-dfm";
  fs::copy_file(DFM_BINARY, other);
  std::ofstream(other, std::ios::app) << "x";
  const HandStarted programs = start_by_hand({{DFM_BINARY, train(save)}, {other.string(), train(save)}});
  EXPECT_EQ(programs.exit_codes, (std::vector<int>{5, 5}));
  expect_one_error(programs.all, 5, "rank 1 on host ");
  EXPECT_NE(programs.all.err.find(": got another program (dfm "), std::string::npos) << programs.all.err;
  EXPECT_FALSE(fs::exists(save));
}

TEST_F(CliRanksTraining, RefusesASecondJobInOneFolder) {
  const TempFolder run;
  const int lock = open((run / "run.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);
  expect_one_error(run_dfm(on_two(train(run.path().string()))), 4,
                   "run folder " + run.path().string() + ": got one that another job writes into (");
  close(lock);
}

// On file systems without locks a second job may have taken a folder over: the first stops at its next save.
TEST_F(CliRanksTraining, StopsAtTheNextSaveInAFolderThatIsNoLongerItsOwn) {
  const TempFolder run;
  RunningDfm dfm(on_two(train(run.path().string(), {"train.train_iters=100000", "checkpoint.save_interval=10"})));
  for (int i = 0; i < 600 && read_all(run / "run.lock").empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::ofstream(run / "run.lock") << "host another\nprocess 7\nstart 2026-01-31T12:00:00Z\ntoken 00\n";
  EXPECT_EQ(dfm.wait(), 4) << dfm.output();
  EXPECT_NE(dfm.output().find(": got one that another job has taken over (host another, process 7, since"),
            std::string::npos)
      << dfm.output();
  EXPECT_FALSE(fs::exists(run / "iter_0000010"));
}

// A limit on the size of files stands for a full disk.
TEST_F(CliRanksTraining, GoesOnAfterAFullDisk) {
  const TempFolder run;
  const std::vector<std::string> args =
      on_two(train(run.path().string(), {"train.train_iters=4", "checkpoint.save_interval=2"}));
  EXPECT_EQ(run_dfm(on_two(train(run.path().string(), {"checkpoint.save_interval=2"}))).exit_code, 0);
  const std::string before = read_all(run / "iter_0000002" / "model_weights.pt");

  rlimit unlimited{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const rlimit small{rlim_t{8} << 20, unlimited.rlim_max};
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Finished full = run_dfm(args);
  setrlimit(RLIMIT_FSIZE, &unlimited);
  signal(SIGXFSZ, handler);

  expect_one_error(full, 6,
                   (run.path() / "iter_0000004.tmp" / "model_weights.pt").string() + ": cannot make room for: ");
  EXPECT_FALSE(fs::exists(run / "iter_0000004.tmp"));
  EXPECT_EQ(read_all(run / "latest_checkpointed_iteration.txt"), "2");
  EXPECT_TRUE(read_all(run / "iter_0000002" / "model_weights.pt") == before);
  const Finished again = run_dfm(args);
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_TRUE(fs::exists(run / "iter_0000004"));
}

}  // namespace
}  // namespace dfm::test
