#pragma once
// One function a subcommand: parse, call the library, print. The result is the exit code; errors are thrown.
#include <string>
#include <vector>

namespace dfm::cli {

int run_prepare(const std::vector<std::string>& args);
int run_train(const std::vector<std::string>& args);
int run_generate(const std::vector<std::string>& args);
int run_inspect(const std::vector<std::string>& args);
int run_config_docs(const std::vector<std::string>& args);  // docs/config.md on stdout

}  // namespace dfm::cli
