#include "command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>

#include "dfm/base/file.h"
#include "dfm/base/log.h"
#include "dfm/config/text.h"
#include "ranks.h"

namespace dfm::cli {
namespace {

constexpr const char* kWhere = "command line";

std::string with_underscores(std::string flag) {
  std::replace(flag.begin() + 2, flag.end(), '-', '_');
  return flag;
}
// "--a-b,--a_b": DFM's scripts write underscores.
std::string both_spellings(const std::string& flag) {
  const std::string other = with_underscores(flag);
  return other == flag ? flag : flag + "," + other;
}

bool is_flag(const std::string& token) {
  return token.size() > 1 && token[0] == '-' && std::isdigit(static_cast<unsigned char>(token[1])) == 0 &&
         token[1] != '.';
}

}  // namespace

void CommandLine::options(const config::Tree& tree, const config::ForeignTable* foreign) {
  tree_ = &tree;
  if (foreign == nullptr) return;
  for (const config::AliasName& alias : foreign->aliases) {
    aliases_.emplace(config::flag_name(alias.name), std::string(alias.meant));
  }
  for (const config::ForeignName& row : foreign->names) {
    ignored_.emplace(config::flag_name(row.name), std::string(row.reason));
  }
}

void CommandLine::flag(const std::string& name, std::function<void(const std::string&)> set) {
  flags_.emplace_back(name, std::move(set));
}

void CommandLine::positionals(std::function<std::string(const std::string& name)> suggest) {
  takes_positionals_ = true;
  suggest_ = std::move(suggest);
}

void CommandLine::add_value_flag(CLI::App& app, const std::string& flag, const config::Option& option) {
  const auto set = [this, flag, &option](const std::string& text) {
    config::Value value;
    const bool is_null = text == "null" && option.type.ends_with(" or null");  // else a prompt may be "null"
    if (!is_null) {
      value.kind = config::Value::Kind::kScalar;
      value.text = text;
    }
    merge_.value(*tree_, option.name, value, kWhere, flag);
  };
  app.add_option_function<std::string>(both_spellings(flag), set)->take_last();
}

void CommandLine::add_switch(CLI::App& app, const std::string& flag, const config::Option& option) {
  std::string names = both_spellings(flag);
  for (const std::string& no : {fmt::format("--no-{}", flag.substr(2)), with_underscores("--no-" + flag.substr(2))}) {
    names += ",!" + no;
  }
  app.add_flag_function(names, [this, flag, &option](std::int64_t count) {
    config::Value value;
    value.kind = config::Value::Kind::kScalar;
    value.text = count > 0 ? "true" : "false";
    merge_.value(*tree_, option.name, value, kWhere, flag);
  });
}

void CommandLine::add_flags(CLI::App& app) {
  if (tree_ != nullptr) {
    for (const config::Option& option : tree_->options) {
      const std::string flag = config::flag_name(option.name);
      if (option.is_switch) {
        add_switch(app, flag, option);
      } else {
        add_value_flag(app, flag, option);
      }
    }
    for (const auto& [flag, meant] : aliases_) add_value_flag(app, flag, *tree_->find(meant));
  }
  for (const auto& [flag, reason] : ignored_) {
    const auto note = [this, line = fmt::format("{} ({})", flag, reason)](const std::string&) {
      given_foreign_.push_back(line);
    };
    app.add_option_function<std::string>(both_spellings(flag), note)->take_last();
  }
  for (const auto& [flag, is_given] : toggles_) app.add_flag(both_spellings(flag), *is_given);
  for (const auto& [flag, set] : flags_) {
    const auto set_each = [&set = set](const std::vector<std::string>& all) {
      for (const std::string& text : all) set(text);
    };
    app.add_option_function<std::vector<std::string>>(both_spellings(flag), set_each)
        ->allow_extra_args(false)
        ->take_all();
  }
}

void CommandLine::parse() {
  CLI::App app;
  app.allow_extras();
  app.set_help_flag();
  app.add_flag("-h,--help", wants_help_);
  app.add_flag_callback("-v,--verbose", [] { log::set_level(log::Level::kDebug); });
  app.add_option("--device", device_)->take_last();
  add_flags(app);
  try {
    app.parse(Arguments(args_.rbegin(), args_.rend()));
  } catch (const CLI::ParseError& error) {
    // The rest of the line was not read: what else is wrong cannot be told yet.
    const std::string text = error.what();
    const std::string name = text.starts_with("-") ? text.substr(0, text.find_first_of(": ")) : "arguments";
    const bool is_missing = dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr;
    merge_.add_error(fmt::format("{}: got {}, want {} ({})", name, is_missing ? "no value" : "a mistake",
                                 is_missing ? "one" : fmt::format("`dfm {} --help`", subcommand_), kWhere));
    merge_.finish();
  }
  take_rest(app.remaining());
  if (!given_foreign_.empty() && is_first_rank()) {
    std::string list;
    for (const std::string& flag : given_foreign_) list += (list.empty() ? "" : ", ") + flag;
    log::warning("config", "flags of DFM's script without effect here: {}", list);
  }
  if (device_ != "auto" && device_ != "cpu" && device_ != "cuda") {
    merge_.add_error(fmt::format("--device: got '{}', want one of auto, cpu, cuda ({})", device_, kWhere));
  }
}

std::string CommandLine::meant_flag(const std::string& flag) const {
  std::vector<std::string> candidates{"--help", "--verbose", "--device"};
  if (tree_ != nullptr) {
    for (const config::Option& option : tree_->options) candidates.push_back(config::flag_name(option.name));
  }
  for (const auto& [name, set] : flags_) candidates.push_back(name);
  for (const auto& [name, is_given] : toggles_) candidates.push_back(name);
  return nearest_name(config::flag_name(flag.substr(std::min(flag.find_first_not_of('-'), flag.size()))), candidates);
}

void CommandLine::unknown_flag(const std::string& token) {
  const std::string flag = token.substr(0, token.find('='));
  if (flag == "--nproc-per-node" || flag == "--nproc_per_node") {
    merge_.add_error(fmt::format("{}: got it after the subcommand, want it before ({}); hint: dfm {} N {} ...", flag,
                                 kWhere, flag, subcommand_));
    return;
  }
  std::string meant = meant_flag(flag);
  if (meant.empty() && suggest_ != nullptr) {
    meant = suggest_(flag.substr(std::min(flag.find_first_not_of('-'), flag.size())));
  }
  merge_.add_error(
      config::unknown_name_error(flag, "flag", fmt::format("one of `dfm {} --help`", subcommand_), kWhere, meant));
}

void CommandLine::take_rest(const Arguments& remaining) {
  bool after_unknown_flag = false;
  for (const std::string& token : remaining) {
    if (is_flag(token)) {
      unknown_flag(token);
      after_unknown_flag = token.find('=') == std::string::npos;
      continue;
    }
    // What follows an unknown flag is most likely its value: one mistake, one line.
    const bool is_its_value = after_unknown_flag && (!takes_positionals_ || token.find('=') == std::string::npos);
    after_unknown_flag = false;
    if (is_its_value) continue;
    if (takes_positionals_) {
      rest_.push_back(token);
    } else {
      merge_.add_error(
          fmt::format("'{}': got an argument without a flag, want --flag value ({}); hint: put quotes around "
                      "a value that has blanks",
                      token, kWhere));
    }
  }
}

std::string common_flags_help(const std::string& subcommand) {
  return "\nEverywhere:\n" +
         config::help_row("--device auto|cpu|cuda", "Where to compute; auto takes a GPU when there is one", 26, 100) +
         config::help_row("--nproc-per-node N",
                          fmt::format("Before the subcommand: `dfm --nproc-per-node N {} ...` runs on N ranks of this "
                                      "machine, a GPU or a part of the cores each",
                                      subcommand),
                          26, 100) +
         config::help_row("-v, --verbose", "More messages; errors with their backtrace", 26, 100) +
         config::help_row("-h, --help", "This text", 26, 100);
}

}  // namespace dfm::cli
