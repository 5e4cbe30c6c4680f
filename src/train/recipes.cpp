#include "dfm/train/recipes.h"

#include <array>
#include <optional>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::train {
namespace {

void set_shape(TrainConfig& config, std::int64_t layers, std::int64_t hidden, std::int64_t heads) {
  config.model.num_layers = layers;
  config.model.hidden_size = hidden;
  config.model.num_attention_heads = heads;
}

// Small enough for two CPU cores: a recognisable butterfly after some minutes.
void apply_demo(TrainConfig& config) {
  set_shape(config, 4, 192, 6);
  config.train.train_iters = 2400;
  config.train.global_batch_size = 8;
  config.optimizer.lr = 2e-3;
  config.optimizer.min_lr = 0;
  config.optimizer.adam_beta2 = 0.99;
  config.optimizer.weight_decay = 0.01;
  config.scheduler.lr_warmup_iters = 60;
  config.dataset.task_encoder_seq_length = 1024;  // the longest step, 8 clips of 108 tokens, with little padding
  config.checkpoint.save = "checkpoints/demo";
  config.checkpoint.save_interval = 0;
  config.logger.log_interval = 50;
}

constexpr auto kRecipes = std::array{
    Recipe{"dit_xl", "28 layers, width 1152, 16 heads: the tutorial's model",
           [](TrainConfig& config) { set_shape(config, 28, 1152, 16); }},
    Recipe{"dit_l", "24 layers, width 1024, 16 heads", [](TrainConfig& config) { set_shape(config, 24, 1024, 16); }},
    Recipe{"dit_b", "12 layers, width 768, 12 heads", [](TrainConfig& config) { set_shape(config, 12, 768, 12); }},
    Recipe{"dit_s", "12 layers, width 384, 6 heads", [](TrainConfig& config) { set_shape(config, 12, 384, 6); }},
    Recipe{"demo", "4 layers, width 192, 6 heads: butterflies on two CPU cores in minutes", apply_demo},
};

const Recipe* find_recipe(const std::string& name, config::Merge& merge) {
  std::vector<std::string> names;
  std::string list;
  for (const Recipe& recipe : kRecipes) {
    if (recipe.name == name) return &recipe;
    names.emplace_back(recipe.name);
    list += (list.empty() ? "" : ", ") + std::string(recipe.name);
  }
  merge.add_error(config::unknown_name_error("--recipe " + name, "recipe", "one of " + list, "command line",
                                             nearest_name(name, names)));
  return nullptr;
}

bool is_same_folder(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (a.empty() || b.empty()) return false;
  const auto whole = [](const std::filesystem::path& path) {
    std::string text = std::filesystem::absolute(path).lexically_normal().string();
    while (text.size() > 1 && text.back() == '/') text.pop_back();
    return text;
  };
  return whole(a) == whole(b);
}

}  // namespace

std::span<const Recipe> recipes() { return kRecipes; }

LoadedConfig load_config(const ConfigSources& sources) {
  LoadedConfig loaded;
  const config::Tree tree = config::tree_of(loaded.config);
  config::Merge merge(&bridge_names());
  for (const std::string& line : sources.errors) merge.add_error(line);
  if (!sources.stored_yaml.empty()) {
    merge.yaml(tree, sources.stored_yaml, sources.stored_where);
  } else if (const Recipe* recipe = find_recipe(sources.recipe, merge)) {
    const config::Values before = config::list_values(tree);
    recipe->apply(loaded.config);
    merge.mark_changed(tree, before, "recipe " + sources.recipe);
  }
  const config::Origins base = merge.origins();
  for (const std::filesystem::path& file : sources.files) {
    try {
      merge.yaml(tree, read_text_file(file), file.string());
    } catch (const Error& error) {
      merge.add_error(std::string("--config-file: ") + error.what());
    }
  }
  for (const std::string& text : sources.overrides) merge.override_value(tree, text);
  merge.check(tree);
  merge.finish();
  loaded.origins = merge.origins();
  // DFM's files name one folder for both, and it need not exist yet: that is what `save` alone means here.
  std::filesystem::path& load = loaded.config.checkpoint.load;
  if (is_same_folder(load, loaded.config.checkpoint.save)) load.clear();
  for (const auto& [name, where] : loaded.origins) {
    const auto found = base.find(name);
    if (found == base.end() || found->second != where) loaded.explicit_options.emplace(name, where);
  }
  loaded.foreign_warning = merge.foreign_warning();
  return loaded;
}

}  // namespace dfm::train
