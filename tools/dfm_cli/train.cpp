#include <charconv>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/comm/launch.h"
#include "dfm/config/text.h"
#include "dfm/ops/device.h"
#include "dfm/train/dry_run.h"
#include "dfm/train/recipes.h"
#include "dfm/train/trainer.h"

#include "command_line.h"
#include "ranks.h"
#include "subcommands.h"

namespace dfm::cli {
namespace {

void print_help() {
  train::TrainConfig defaults;
  std::string text =
      "dfm train: train a video diffusion transformer on what `dfm prepare` wrote\n\n"
      "  dfm train --dataset-path DATA [--recipe NAME] [--config-file my.yaml]... [section.option=value]...\n\n"
      "A run takes its values from the recipe, then from the YAML files in order, then from section.option=value.\n"
      "The same command again continues a run that was stopped.\n\n"
      "Examples:\n"
      "  dfm train --dataset-path butterfly_webdataset                        DiT-XL, as in DFM's tutorial\n"
      "  dfm train --recipe demo --dataset-path out                           small, for two CPU cores\n"
      "  dfm train --config-file my.yaml model.num_layers=6 train.train_iters=200\n"
      "  dfm train --recipe dit_s --print-config full                         what would run, and why\n"
      "  dfm --nproc-per-node 4 train --dataset-path DATA model.tensor_model_parallel_size=2   4 ranks\n\n"
      "Flags:\n";
  const auto row = [&](const char* left, const char* right) { text += config::help_row(left, right, 26, 100); };
  row("--dataset-path DIR", "Short for dataset.path=DIR");
  row("--config-file FILE", "YAML with the options below; may be given several times, later files win");
  row("--recipe NAME", "Where the values start [dit_xl]:");
  for (const train::Recipe& recipe : train::recipes()) {
    row("", fmt::format("{}: {}", recipe.name, recipe.help).c_str());
  }
  row("--print-config full|minimal", "Print the merged options as YAML (minimal: those that differ from the defaults)");
  row("--dry-run", "Print layout, parameters, memory and bytes communicated of a rank, and end");
  row("--world-size N", "With --dry-run: of so many ranks; default: those that were started");
  text += common_flags_help("train") + "\nOptions (section.option=default):\n";
  text += config::sections_help(config::tree_of(defaults));
  fmt::print("{}", text);
}

std::string meant_option(const std::string& name) {
  train::TrainConfig config;
  std::string last = name.substr(name.rfind('.') == std::string::npos ? 0 : name.rfind('.') + 1);
  std::replace(last.begin(), last.end(), '-', '_');
  for (const config::Option& option : config::tree_of(config).options) {
    if (option.name == last || option.name.ends_with("." + last)) return option.name + "=...";
  }
  return "";
}

void print_dry_run(train::TrainConfig config, const at::Device& device, int world_size) {
  const std::vector<std::int64_t> lengths = train::follow_dataset_for_dry_run(config);
  const bool is_bf16 = config.mixed_precision == train::Precision::kBf16Mixed ||
                       (config.mixed_precision == train::Precision::kAuto && device.is_cuda());
  for (const std::string& text : train::dry_run(config, world_size, is_bf16, lengths).lines) fmt::print("{}\n", text);
}

}  // namespace

int run_train(const std::vector<std::string>& args) {
  CommandLine line("train", args);
  train::ConfigSources sources;
  std::string dataset_path;
  std::string print_style;
  line.flag("--recipe", [&](const std::string& text) { sources.recipe = text; });
  line.flag("--config-file", [&](const std::string& text) { sources.files.emplace_back(text); });
  line.flag("--dataset-path", [&](const std::string& text) { sources.overrides.push_back("dataset.path=" + text); });
  line.flag("--print-config", [&](const std::string& text) { print_style = text; });
  bool is_dry_run = false;
  line.toggle("--dry-run", is_dry_run);
  int dry_ranks = 0;
  line.flag("--world-size", [&](const std::string& text) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), dry_ranks);
    if (error != std::errc() || end != text.data() + text.size() || dry_ranks < 1)
      line.merge().add_error(fmt::format("--world-size: got '{}', want an integer >= 1 (command line)", text));
  });
  line.positionals(meant_option);
  line.parse();
  if (line.wants_help()) {
    print_help();
    return 0;
  }
  sources.overrides.insert(sources.overrides.end(), line.rest().begin(), line.rest().end());
  if (!print_style.empty() && print_style != "full" && print_style != "minimal") {
    line.merge().add_error("--print-config: got '" + print_style + "', want full or minimal (command line)");
  }
  if (dry_ranks > 0 && !is_dry_run) {
    line.merge().add_error(
        "--world-size: got it without --dry-run, want both (command line); hint: dfm --nproc-per-node N train starts N "
        "ranks");
  }
  sources.errors = line.merge().errors();
  const train::LoadedConfig loaded = train::load_config(sources);
  if (!loaded.foreign_warning.empty() && is_first_rank()) log::warning("config", "{}", loaded.foreign_warning);
  if (!print_style.empty()) {
    const auto style = print_style == "full" ? config::YamlStyle::kFull : config::YamlStyle::kMinimal;
    fmt::print("{}", config::to_yaml(loaded.config, style, &loaded.origins));
    return 0;
  }
  const comm::Launch launch = comm::read_launch();
  train::RunContext context;
  context.device = ops::select_device(line.device(), launch.local_rank);
  if (is_dry_run) {
    if (launch.rank == 0) print_dry_run(loaded.config, context.device, dry_ranks > 0 ? dry_ranks : launch.world_size);
    return 0;
  }
  context.explicit_options = loaded.explicit_options;
  context.recipe = sources.recipe;
  context.over_stored = [&](const std::string& stored_yaml, const std::string& where) {
    train::ConfigSources over = sources;
    over.stored_yaml = stored_yaml;
    over.stored_where = where;
    return train::load_config(over).config;
  };
  context.world = join_world("train", context.device, loaded.config.dist);
  const train::Summary summary = train::run(loaded.config, context);
  context.world->leave();
  return static_cast<int>(summary.exit_code);
}

}  // namespace dfm::cli
