#pragma once
// A small config with every kind of option.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dfm/config/merge.h"

namespace dfm::config::test {

enum class Decay { kNone, kCosine };
constexpr auto enum_names(Decay) {
  return std::array{std::pair{Decay::kNone, "none"}, std::pair{Decay::kCosine, "cosine"}};
}

struct ModelSection {
  std::int64_t num_layers = 28;
  std::int64_t hidden_size = 1152;
  std::int64_t num_heads = 16;
  static constexpr auto fields() {
    return config::fields<ModelSection>(field("num_layers", &ModelSection::num_layers, "Layers", positive),
                                        field("hidden_size", &ModelSection::hidden_size, "Width", positive),
                                        field("num_heads", &ModelSection::num_heads, "Heads", positive));
  }
  void check(Problems& problems) const {
    if (hidden_size % num_heads != 0) {
      problems.push_back({"num_heads", std::to_string(num_heads), "a divisor of hidden_size", "try 16"});
    }
  }
};

struct OptimizerSection {
  double lr = 0.9e-4;
  std::optional<double> min_lr;
  std::vector<double> betas;
  Decay decay = Decay::kCosine;
  bool clip = true;
  static constexpr auto fields() {
    return config::fields<OptimizerSection>(field("lr", &OptimizerSection::lr, "Peak learning rate", non_negative),
                                            field("min_lr", &OptimizerSection::min_lr, "Lowest", non_negative),
                                            field("betas", &OptimizerSection::betas, "Betas"),
                                            field("decay", &OptimizerSection::decay, "Decay"),
                                            field("clip", &OptimizerSection::clip, "Clip gradients"));
  }
};

struct ExampleConfig {
  ModelSection model;
  OptimizerSection optimizer;
  std::filesystem::path path;
  std::string note = "a: b";
  std::uint64_t seed = 1234;
  static constexpr auto fields() {
    return config::fields<ExampleConfig>(
        field("model", &ExampleConfig::model, "The model"),
        field("optimizer", &ExampleConfig::optimizer, "The optimizer"), field("path", &ExampleConfig::path, "A path"),
        field("note", &ExampleConfig::note, "A note"), field("seed", &ExampleConfig::seed, "Key of | everything"));
  }
};

inline constexpr auto kForeignNames = std::to_array<ForeignName>({
    {"*._target_", "Python"},
    {"model.qkv_format", "always packed"},
    {"model.rotary_*", "no table"},
    {"model.fp16", "no fp16", "false|null"},
    {"model.sigma", "fixed", "0.5"},
    {"ddp", "one rank"},
});
inline constexpr auto kAliases = std::to_array<AliasName>({{"optimizer.rate", "optimizer.lr"}});
inline const ForeignTable kForeign{kForeignNames, kAliases};

// The errors of a YAML text, after all checks.
inline std::vector<std::string> errors_of(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  ExampleConfig example;
  const Tree tree = tree_of(example);
  Merge merge(&kForeign);
  merge.yaml(tree, yaml, "my.yaml");
  for (const std::string& text : overrides) merge.override_value(tree, text);
  merge.check(tree);
  return merge.errors();
}

}  // namespace dfm::config::test
