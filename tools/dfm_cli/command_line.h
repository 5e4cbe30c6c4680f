#pragma once
// Flags of a subcommand. CLI11 takes the command line apart; names, types and checks come from the option structs.
//
//   CommandLine line("generate", args);
//   line.options(tree, &foreign_flags());
//   line.parse();   // every mistake is kept in line.merge()
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "dfm/config/merge.h"
#include "dfm/config/tree.h"

namespace CLI {
class App;
}

namespace dfm::cli {

using Arguments = std::vector<std::string>;

class CommandLine {
 public:
  CommandLine(std::string subcommand, Arguments args) : subcommand_(std::move(subcommand)), args_(std::move(args)) {}

  // Each option of a flat struct becomes a flag; `foreign` may be null. The tree must outlive this object.
  void options(const config::Tree& tree, const config::ForeignTable* foreign);
  // A flag that is not in a struct. `set` may throw nothing; it is called in the order of the command line.
  void flag(const std::string& name, std::function<void(const std::string&)> set);
  // A flag without a value.
  void toggle(const std::string& name, bool& is_given) { toggles_.emplace_back(name, &is_given); }
  // Positional arguments are taken; otherwise each is an error. `suggest` names what an unknown flag may have meant.
  void positionals(std::function<std::string(const std::string& name)> suggest);
  void parse();

  [[nodiscard]] config::Merge& merge() { return merge_; }
  [[nodiscard]] const Arguments& rest() const { return rest_; }
  [[nodiscard]] bool wants_help() const { return wants_help_; }
  [[nodiscard]] const std::string& device() const { return device_; }

 private:
  void add_value_flag(CLI::App& app, const std::string& flag, const config::Option& option);
  void add_switch(CLI::App& app, const std::string& flag, const config::Option& option);
  void add_flags(CLI::App& app);
  void take_rest(const Arguments& remaining);
  void unknown_flag(const std::string& token);
  [[nodiscard]] std::string meant_flag(const std::string& flag) const;

  std::string subcommand_;
  Arguments args_;
  const config::Tree* tree_ = nullptr;
  std::map<std::string, std::string> aliases_;  // DFM's flag -> option
  std::map<std::string, std::string> ignored_;  // DFM's flag without effect -> reason
  std::vector<std::pair<std::string, std::function<void(const std::string&)>>> flags_;
  std::vector<std::pair<std::string, bool*>> toggles_;
  bool takes_positionals_ = false;
  std::function<std::string(const std::string&)> suggest_;
  config::Merge merge_;
  Arguments rest_;
  std::vector<std::string> given_foreign_;
  bool wants_help_ = false;
  std::string device_ = "auto";
};

// What every subcommand's help ends with.
std::string common_flags_help(const std::string& subcommand);

}  // namespace dfm::cli
