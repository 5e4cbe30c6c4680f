// `dfm config-docs`: docs/config.md, held against the code by a test.
#include <fmt/format.h>

#include <algorithm>

#include "dfm/config/text.h"
#include "dfm/generate/options.h"
#include "dfm/inspect/options.h"
#include "dfm/prepare/options.h"
#include "dfm/train/recipes.h"
#include "subcommands.h"

namespace dfm::cli {

int run_config_docs(const std::vector<std::string>&) {
  train::TrainConfig train;
  prepare::PrepareOptions prepare;
  generate::GenerateOptions generate;
  inspect::InspectOptions inspect;
  std::string recipes;
  for (const train::Recipe& recipe : train::recipes()) recipes += fmt::format("- `{}`: {}\n", recipe.name, recipe.help);
  std::string foreign = "| Name | Accepted | Reason |\n|---|---|---|\n";
  for (const config::ForeignName& row : train::bridge_names().names) {
    std::string accepted(row.accepted.empty() ? "any value" : row.accepted);
    std::replace(accepted.begin(), accepted.end(), '|', ' ');
    foreign += fmt::format("| `{}` | {} | {} |\n", row.name, accepted, row.reason);
  }
  std::string aliases;
  for (const config::AliasName& row : train::bridge_names().aliases) {
    aliases += fmt::format("- `{}` is `{}`\n", row.name, row.meant);
  }
  fmt::print(
      "# Options\n\nWritten by `dfm config-docs`; a test holds it against the code.\n\n"
      "## dfm train\n"
      "Values come from a recipe, then from the YAML files (`--config-file`, several, later ones win), then from "
      "`section.option=value` on the command line (a leading `+` or `++` is taken too). `dfm train --print-config "
      "full` "
      "shows the result and where each value is from. Names are those of Megatron-Bridge.\n\nRecipes:\n{}\n"
      "One difference from DFM: `train.global_batch_size` counts samples. DFM counts packs, of about "
      "`task_encoder_seq_length` tokens each: multiply its number by the samples that a pack holds.\n\n{}\n"
      "### Names of Megatron-Bridge\nOther names for options:\n{}\n"
      "Accepted with one warning, without effect. Where other values would ask for another training run, only those "
      "listed are accepted. A name without a dot is a whole section; `*` stands for any end, or any beginning.\n\n{}\n"
      "## dfm prepare\n\n{}\n## dfm generate\n\n{}\n## dfm inspect\n\n{}",
      recipes, config::markdown(config::tree_of(train), false), aliases, foreign,
      config::markdown(config::tree_of(prepare), true), config::markdown(config::tree_of(generate), true),
      config::markdown(config::tree_of(inspect), true));
  return 0;
}

}  // namespace dfm::cli
