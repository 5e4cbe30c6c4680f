#include "support/ranks.h"

#include <ATen/Parallel.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <thread>

#include "comm/key_store.h"
#include "dfm/base/error.h"
#include "dfm/comm/failure.h"
#include "support/temp_folder.h"

extern char** environ;

namespace dfm::test {
namespace {

constexpr const char* kFlag = "--rank-case";
constexpr std::size_t kMostOutput = 8000;

std::map<std::string, RankCase>& cases() {
  static std::map<std::string, RankCase> registered;
  return registered;
}

bool starts_with_any(const std::string& text, const std::vector<std::string>& starts) {
  return std::any_of(starts.begin(), starts.end(), [&](const std::string& start) { return text.rfind(start, 0) == 0; });
}

// The parent's environment without what speaks of another launch or steers GoogleTest, and the rank's own.
std::vector<std::string> environment_of(int rank, int num_ranks, int port, const RankOptions& options) {
  std::map<std::string, std::string> values{{"RANK", std::to_string(rank)},
                                            {"LOCAL_RANK", std::to_string(rank)},
                                            {"WORLD_SIZE", std::to_string(num_ranks)},
                                            {"LOCAL_WORLD_SIZE", std::to_string(num_ranks)},
                                            {"MASTER_ADDR", "127.0.0.1"},
                                            {"MASTER_PORT", std::to_string(port)},
                                            {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                            {"TORCHELASTIC_RESTART_COUNT", "0"},
                                            {"OMP_NUM_THREADS", "1"}};
  for (const auto& [name, value] : options.environment) values[name] = value;
  std::vector<std::string> lines;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string line = *entry;
    const bool is_replaced = values.count(line.substr(0, line.find('='))) > 0;
    if (!is_replaced && !starts_with_any(line, {"OMPI_", "SLURM_", "GTEST_", "XML_OUTPUT_FILE"})) lines.push_back(line);
  }
  for (const auto& [name, value] : values) lines.push_back(name + "=" + value);
  return lines;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

pid_t start(const std::vector<std::string>& args, std::vector<std::string> environment, const std::string& output) {
  std::vector<std::string> words = args;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t process = -1;
  const int code = posix_spawn(&process, "/proc/self/exe", &actions, nullptr, pointers_to(words).data(),
                               pointers_to(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) throw std::runtime_error("cannot start a rank");
  return process;
}

std::string read_all(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text.size() > kMostOutput) text = "[...]" + text.substr(text.size() - kMostOutput);
  return text;
}

// Waits for all; false: the deadline came first, and killed them.
bool wait_for(std::map<int, int> processes, const RankOptions& options, std::vector<RankResult>& results) {
  const auto end = std::chrono::steady_clock::now() + options.deadline;
  bool is_in_time = true;
  while (!processes.empty()) {
    for (auto at = processes.begin(); at != processes.end();) {
      int status = 0;
      if (waitpid(at->second, &status, WNOHANG) == 0) {
        ++at;
        continue;
      }
      results[static_cast<std::size_t>(at->first)].exit_code =
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      at = processes.erase(at);
    }
    if (is_in_time && std::chrono::steady_clock::now() > end) {
      for (const auto& [rank, process] : processes) kill(process, SIGKILL);
      is_in_time = false;
    }
    if (options.meanwhile && !processes.empty() && is_in_time) options.meanwhile(processes);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return is_in_time;
}

// The case as GoogleTest's only test, so that all kinds of assertions work in it.
class CaseTest : public ::testing::Test {
 public:
  CaseTest(std::function<void()> body) : body_(std::move(body)) {}
  void TestBody() override { body_(); }

 private:
  std::function<void()> body_;
};

int run_test(const std::string& name, const std::function<void()>& body) {
  ::testing::RegisterTest("RankCase", name.c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [&]() -> ::testing::Test* { return new CaseTest(body); });
  ::testing::GTEST_FLAG(filter) = "RankCase." + name;
  return RUN_ALL_TESTS();
}

comm::Claim fail(ExitCode code, const std::string& line) {
  comm::Claim claim = comm::claim_failure(comm::read_launch(), code, line);
  if (claim.is_first) std::cerr << "test: error: " << claim.label << line << "\n";
  return claim;
}

int run_joined(const std::string& name, const RankCase& body, const RankArgs& args) {
  const comm::WorldOptions options =
      body.options ? body.options(args) : comm::WorldOptions{.command = "test", .timeout = std::chrono::seconds(60)};
  const std::shared_ptr<comm::World> world = comm::World::join(comm::read_launch(), options);
  // Errors become the run's failure within the test, as in main(): the other ranks must not wait for this one.
  std::optional<comm::Claim> failure;
  const int failed = run_test(name, [&] {
    try {
      body.joined(*world, args);
      if (::testing::Test::HasFatalFailure()) failure = fail(ExitCode::kInternal, "a fatal test failure");
    } catch (const Error& error) {
      failure = fail(error.code(), error.what());
    } catch (const std::exception& error) {
      failure = fail(ExitCode::kInternal, error.what());
    }
  });
  if (failure) comm::end_failed(comm::read_launch(), failure->cause);
  world->leave();
  return failed;
}

int run_rank(const std::vector<std::string>& words) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that is killed takes its ranks with it
  at::set_num_threads(1);
  const auto found = cases().find(words.at(0));
  if (found == cases().end()) {
    std::cerr << "no RANK_CASE(" << words[0] << ") in this program\n";
    return 1;
  }
  const RankArgs args(words.begin() + 1, words.end());
  try {
    return found->second.raw ? found->second.raw(args) : run_joined(found->first, found->second, args);
  } catch (const Error& error) {
    comm::end_failed(comm::read_launch(), fail(error.code(), error.what()).cause);
  }
}

}  // namespace

RegisterRankCase::RegisterRankCase(const std::string& name, RankCase body) { cases()[name] = std::move(body); }

std::vector<RankResult> launch_ranks(int num_ranks, const std::string& name, const RankArgs& args,
                                     const RankOptions& options) {
  const TempFolder folder;
  const comm::AgentStore store;  // as torchrun's agent: no rank has to find a free port
  std::vector<std::string> words{"/proc/self/exe", kFlag, name};
  words.insert(words.end(), args.begin(), args.end());
  std::map<int, int> processes;
  const auto output_of = [&](int rank) { return folder / ("rank" + std::to_string(rank)); };
  for (int rank = 0; rank < num_ranks; ++rank) {
    processes[rank] = start(words, environment_of(rank, num_ranks, store.port(), options), output_of(rank));
  }
  std::vector<RankResult> results(static_cast<std::size_t>(num_ranks));
  const bool is_in_time = wait_for(processes, options, results);
  for (int rank = 0; rank < num_ranks; ++rank) {
    results[static_cast<std::size_t>(rank)].output = read_all(output_of(rank));
  }
  if (!is_in_time) {
    std::string outputs;
    for (const RankResult& result : results) outputs += "\n--- rank's output:\n" + result.output;
    ADD_FAILURE() << name << " on " << num_ranks << " ranks: not done after " << options.deadline.count() << " s"
                  << outputs;
  }
  return results;
}

void run_ranks(int num_ranks, const std::string& name, const RankArgs& args, const RankOptions& options) {
  const std::vector<RankResult> results = launch_ranks(num_ranks, name, args, options);
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    EXPECT_EQ(results[rank].exit_code, 0) << name << ": rank " << rank << " of " << num_ranks << " says:\n"
                                          << results[rank].output;
  }
}

}  // namespace dfm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc >= 3 && std::string(argv[1]) == dfm::test::kFlag) {
    return dfm::test::run_rank(std::vector<std::string>(argv + 2, argv + argc));
  }
  return RUN_ALL_TESTS();
}
