#pragma once
// Runs the dfm binary as a user does: its own process, its exit code, what it printed.
#include <string>
#include <vector>

namespace dfm::test {

struct Finished {
  int exit_code = -1;
  std::string out;
  std::string err;
};
// In an empty temporary folder, which is removed afterwards; no GPU is looked for.
Finished run_dfm(const std::vector<std::string>& args);

}  // namespace dfm::test
