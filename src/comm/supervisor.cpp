#include "dfm/comm/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>

#include "comm/key_store.h"
#include "dfm/base/error.h"

extern char** environ;

namespace dfm::comm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kGrace(5);
constexpr std::size_t kLongestLine = 1 << 16;  // a longer one is cut, so that a rank cannot fill our memory

// One stream of a rank: whole lines go on with the rank in front.
struct Stream {
  int source = -1;
  int target = -1;
  std::string line;
};

struct Rank {
  pid_t process = -1;  // -1: ended
  std::array<Stream, 2> streams;
};

void write_all(int descriptor, const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const ssize_t written = write(descriptor, text.data() + at, text.size() - at);
    if (written < 0 && errno != EINTR) return;  // nobody reads any more: the ranks go on
    at += written > 0 ? static_cast<std::size_t>(written) : 0;
  }
}

void forward_lines(Stream& stream, int rank, bool is_last) {
  std::string text;
  std::size_t at = 0;
  for (std::size_t end; (end = stream.line.find('\n', at)) != std::string::npos; at = end + 1) {
    text += fmt::format("[{}] {}\n", rank, stream.line.substr(at, end - at));
  }
  stream.line.erase(0, at);
  if ((is_last && !stream.line.empty()) || stream.line.size() > kLongestLine) {
    text += fmt::format("[{}] {}\n", rank, stream.line);
    stream.line.clear();
  }
  write_all(stream.target, text);
}

// What is there to read now.
void drain(Stream& stream, int rank) {
  std::array<char, 16384> buffer;
  while (stream.source >= 0) {
    const ssize_t got = read(stream.source, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got <= 0) {
      close(stream.source);
      stream.source = -1;
      break;
    }
    stream.line.append(buffer.data(), static_cast<std::size_t>(got));
  }
  forward_lines(stream, rank, stream.source < 0);
}

class Supervisor {
 public:
  Supervisor(int num_ranks, const std::vector<std::string>& args) : args_(args) {
    // Before the store's threads, which inherit the mask: only the signalfd takes these.
    sigemptyset(&signals_);
    for (const int number : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals_, number);
    sigprocmask(SIG_BLOCK, &signals_, &mask_before_);
    signal(SIGPIPE, SIG_IGN);
    signal_source_ = signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK);
    store_ = std::make_unique<AgentStore>();
    ranks_.resize(static_cast<std::size_t>(num_ranks));
  }

  int run() {
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) start(static_cast<int>(rank));
    while (num_running_ > 0) {
      wait_for_news();
      take_signals();
      reap();
      end_the_rest();
    }
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      for (Stream& stream : ranks_[rank].streams) {
        drain(stream, static_cast<int>(rank));
        forward_lines(stream, static_cast<int>(rank), true);  // a grandchild may hold the pipe: no more is waited for
      }
    }
    return exit_code();
  }

 private:
  void start(int rank) {
    std::vector<std::string> environment = environment_of(rank);
    std::vector<std::string> words = args_;
    words.insert(words.begin(), "dfm");
    std::vector<char*> argv, env;
    for (std::string& word : words) argv.push_back(word.data());
    for (std::string& entry : environment) env.push_back(entry.data());
    argv.push_back(nullptr);
    env.push_back(nullptr);
    std::array<std::array<int, 2>, 2> pipes{};
    for (auto& ends : pipes) {
      if (pipe2(ends.data(), O_CLOEXEC) != 0) throw CommError("rank {}: no pipe ({})", rank, std::strerror(errno));
    }
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child < 0) {
      for (const Rank& other : ranks_) {
        if (other.process > 0) kill(other.process, SIGKILL);
      }
      throw CommError("rank {}: got no process ({}), want one; hint: a smaller --nproc-per-node", rank,
                      std::strerror(errno));
    }
    if (child == 0) become_rank(parent, pipes, argv.data(), env.data());
    Rank& mine = ranks_[static_cast<std::size_t>(rank)];
    mine.process = child;
    for (std::size_t i = 0; i < 2; ++i) {
      close(pipes[i][1]);
      fcntl(pipes[i][0], F_SETFL, O_NONBLOCK);
      mine.streams[i] = Stream{pipes[i][0], i == 0 ? STDOUT_FILENO : STDERR_FILENO, ""};
    }
    ++num_running_;
  }

  // After fork, in a process whose other threads are gone: system calls only.
  [[noreturn]] void become_rank(pid_t parent, const std::array<std::array<int, 2>, 2>& pipes, char** argv, char** env) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    setpgid(0, 0);  // Ctrl-C reaches the supervisor alone, which sends it on once
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(pipes[0][1], STDOUT_FILENO);
    dup2(pipes[1][1], STDERR_FILENO);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
    execve("/proc/self/exe", argv, env);
    _exit(127);
  }

  [[nodiscard]] std::vector<std::string> environment_of(int rank) const {
    const std::string size = std::to_string(ranks_.size());
    const std::map<std::string, std::string> own{{"RANK", std::to_string(rank)},
                                                 {"LOCAL_RANK", std::to_string(rank)},
                                                 {"WORLD_SIZE", size},
                                                 {"LOCAL_WORLD_SIZE", size},
                                                 {"MASTER_ADDR", "127.0.0.1"},
                                                 {"MASTER_PORT", std::to_string(store_->port())},
                                                 {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                                 {"TORCHELASTIC_RESTART_COUNT", "0"},
                                                 {"DFM_SUPERVISED", "1"}};
    std::vector<std::string> entries;
    for (char** entry = environ; *entry != nullptr; ++entry) {
      const std::string text = *entry;
      if (own.count(text.substr(0, text.find('='))) == 0) entries.push_back(text);
    }
    for (const auto& [name, value] : own) entries.push_back(name + "=" + value);
    return entries;
  }

  void wait_for_news() {
    std::vector<pollfd> queries{{signal_source_, POLLIN, 0}};
    for (const Rank& rank : ranks_) {
      for (const Stream& stream : rank.streams) queries.push_back({stream.source, POLLIN, 0});
    }
    poll(queries.data(), queries.size(), failed_at_ ? 200 : -1);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      for (std::size_t i = 0; i < 2; ++i) {
        if (queries[1 + 2 * rank + i].revents != 0) drain(ranks_[rank].streams[i], static_cast<int>(rank));
      }
    }
  }

  void take_signals() {
    signalfd_siginfo info{};
    while (read(signal_source_, &info, sizeof info) == sizeof info) {
      const int number = static_cast<int>(info.ssi_signo);
      if (number != SIGCHLD) send_to_all(number);
    }
  }

  void send_to_all(int number) {
    forwarded_ = number;
    for (const Rank& rank : ranks_) {
      if (rank.process > 0) kill(rank.process, number);
    }
  }

  void reap() {
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      Rank& rank = ranks_[i];
      int status = 0;
      if (rank.process < 0 || waitpid(rank.process, &status, WNOHANG) != rank.process) continue;
      rank.process = -1;
      --num_running_;
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
      if (!failed_at_) failed_at_ = Clock::now();
      if (WIFEXITED(status) && !code_) code_ = WEXITSTATUS(status);
      if (WIFSIGNALED(status) && !killed_ && !has_killed_) killed_ = {static_cast<int>(i), WTERMSIG(status)};
    }
  }

  // Ranks that do not notice the failure of another, because they have not met yet or hang.
  void end_the_rest() {
    if (!failed_at_ || has_killed_ || Clock::now() - *failed_at_ < kGrace) return;
    has_killed_ = true;
    for (const Rank& rank : ranks_) {
      if (rank.process > 0) kill(rank.process, SIGKILL);
    }
  }

  int exit_code() {
    if (code_) return *code_;  // that rank, or one that noticed, has said why
    if (!killed_) return 0;
    const auto [rank, number] = *killed_;
    if (number == forwarded_) return 128 + number;
    fmt::print(stderr,
               "dfm: error: rank {}: ended by signal {} ({}); hint: for signal 9 look for the kernel's "
               "out-of-memory killer (dmesg)\n",
               rank, number, strsignal(number));
    return static_cast<int>(ExitCode::kComm);
  }

  struct Killed {
    int rank = 0;
    int signal = 0;
  };

  std::vector<std::string> args_;
  sigset_t signals_{}, mask_before_{};
  int signal_source_ = -1;
  std::unique_ptr<AgentStore> store_;
  std::vector<Rank> ranks_;
  int num_running_ = 0;
  int forwarded_ = 0;
  bool has_killed_ = false;
  std::optional<Clock::time_point> failed_at_;
  std::optional<int> code_;       // of the first rank that ended by itself, with an error
  std::optional<Killed> killed_;  // the first rank that a signal ended
};

}  // namespace

int supervise(int num_ranks, const std::vector<std::string>& args) { return Supervisor(num_ranks, args).run(); }

}  // namespace dfm::comm
