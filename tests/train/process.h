#pragma once
// A real `dfm` process: needs DFM_BINARY, the program's path, which CMake gives.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace dfm::test {

class Process {
 public:
  Process(std::vector<std::string> arguments, const std::filesystem::path& log) {
    const std::string program = DFM_BINARY;
    std::vector<char*> argv{const_cast<char*>(program.c_str())};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    id_ = fork();
    if (id_ != 0) return;
    const int file = open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    execv(argv.front(), argv.data());
    _exit(127);
  }
  void signal(int number) const { kill(id_, number); }
  [[nodiscard]] pid_t id() const { return id_; }
  // The exit code; 128 + signal when one ended it.
  [[nodiscard]] int wait() const {
    int status = 0;
    waitpid(id_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // The same, or nothing when it has not ended after `seconds`.
  [[nodiscard]] std::optional<int> wait_for(double seconds) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end) {
      int status = 0;
      if (waitpid(id_, &status, WNOHANG) == id_)
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return std::nullopt;
  }

 private:
  pid_t id_ = -1;
};

}  // namespace dfm::test
