#pragma once
// Where a training configuration comes from: a recipe, YAML files in order, dotted overrides. Names of Megatron-Bridge
// that mean nothing here are accepted with one warning, so that a DFM YAML runs unchanged.
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dfm/config/merge.h"
#include "dfm/train/config.h"

namespace dfm::train {

struct Recipe {
  std::string_view name;
  std::string_view help;
  void (*apply)(TrainConfig& config);
};
std::span<const Recipe> recipes();
inline constexpr std::string_view kDefaultRecipe = "dit_xl";

const config::ForeignTable& bridge_names();

struct ConfigSources {
  std::string recipe{kDefaultRecipe};
  std::vector<std::filesystem::path> files;
  std::vector<std::string> overrides;  // section.option=value
  // YAML text that stands in the recipe's place and what it is called: the stored configuration of a continued run.
  std::string stored_yaml;
  std::string stored_where;
  std::vector<std::string> errors;  // of the command line itself, reported with the others
};
struct LoadedConfig {
  TrainConfig config;
  config::Origins origins;           // of all values that are not the default's
  config::Origins explicit_options;  // of those from a file or the command line
  std::string foreign_warning;       // "" or one line
};
// One ConfigError with a line for each thing that is wrong in any of the sources.
LoadedConfig load_config(const ConfigSources& sources);

}  // namespace dfm::train
