#include "cli/run_dfm.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "support/temp_folder.h"

namespace dfm::test {
namespace {

std::string read_all(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

[[noreturn]] void run_child(const std::vector<std::string>& args, const std::filesystem::path& folder) {
  const auto redirect = [&](const char* name, int descriptor) {
    const int file = open((folder / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(file, descriptor);
  };
  redirect("out", STDOUT_FILENO);
  redirect("err", STDERR_FILENO);
  std::filesystem::create_directory(folder / "work");
  if (chdir((folder / "work").c_str()) != 0) _exit(126);
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  std::vector<char*> argv{const_cast<char*>(DFM_BINARY)};
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  execv(DFM_BINARY, argv.data());
  _exit(127);
}

}  // namespace

Finished run_dfm(const std::vector<std::string>& args) {
  const TempFolder folder;
  const pid_t child = fork();
  if (child == 0) run_child(args, folder.path());
  int status = 0;
  waitpid(child, &status, 0);
  Finished finished;
  finished.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  finished.out = read_all(folder / "out");
  finished.err = read_all(folder / "err");
  return finished;
}

}  // namespace dfm::test
