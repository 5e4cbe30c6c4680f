// The training configuration: recipes, the files in configs/, the tutorial's form.
#include "dfm/train/recipes.h"

#include <gtest/gtest.h>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

const fs::path kConfigs = fs::path(DFM_SOURCE_DIR) / "configs";

LoadedConfig load_recipe(const std::string& name) {
  ConfigSources sources;
  sources.recipe = name;
  return load_config(sources);
}

std::string load_error(const ConfigSources& sources) {
  try {
    load_config(sources);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Recipes, HaveTheirShapes) {
  const auto shape = [](const std::string& name) {
    const models::DitConfig model = load_recipe(name).config.model;
    return std::vector<std::int64_t>{model.num_layers, model.hidden_size, model.num_attention_heads};
  };
  EXPECT_EQ(shape("dit_xl"), (std::vector<std::int64_t>{28, 1152, 16}));
  EXPECT_EQ(shape("dit_l"), (std::vector<std::int64_t>{24, 1024, 16}));
  EXPECT_EQ(shape("dit_b"), (std::vector<std::int64_t>{12, 768, 12}));
  EXPECT_EQ(shape("dit_s"), (std::vector<std::int64_t>{12, 384, 6}));
  EXPECT_EQ(shape("demo"), (std::vector<std::int64_t>{4, 192, 6}));
}

TEST(Recipes, DefaultIsTheTutorialsRun) {
  EXPECT_EQ(config::to_yaml(load_recipe("dit_xl").config, config::YamlStyle::kMinimal), "");
  const TrainConfig config = load_config({}).config;
  EXPECT_EQ(config.optimizer.lr, 0.9e-4);
  EXPECT_EQ(config.train.train_iters, 10000);
  EXPECT_EQ(config.dataset.task_encoder_seq_length, 15360);
}

TEST(Recipes, ValuesHaveTheRecipeAsTheirOrigin) {
  const LoadedConfig loaded = load_recipe("demo");
  EXPECT_EQ(loaded.origins.at("optimizer.lr"), "recipe demo");
  EXPECT_TRUE(loaded.explicit_options.empty());
}

TEST(Recipes, UnknownRecipeNamesTheNearest) {
  ConfigSources sources;
  sources.recipe = "dit_x";
  EXPECT_EQ(
      load_error(sources),
      "--recipe dit_x: got no such recipe, want one of dit_xl, dit_l, dit_b, dit_s, demo (command line); hint: did "
      "you mean 'dit_xl'");
}

TEST(LoadConfig, EveryFileInConfigsLoadsWithoutAnError) {
  int num_files = 0;
  for (const auto& entry : fs::directory_iterator(kConfigs)) {
    SCOPED_TRACE(entry.path());
    ConfigSources sources;
    sources.files = {entry.path()};
    EXPECT_EQ(load_error(sources), "");
    ++num_files;
  }
  EXPECT_GE(num_files, 4);
}

TEST(LoadConfig, ShippedFilesEqualTheirRecipes) {
  for (const char* name : {"dit_xl", "dit_s", "demo"}) {
    ConfigSources sources;
    sources.files = {kConfigs / (std::string(name) + ".yaml")};
    EXPECT_EQ(config::to_yaml(load_config(sources).config, config::YamlStyle::kMinimal),
              config::to_yaml(load_recipe(name).config, config::YamlStyle::kMinimal))
        << name;
  }
}

TEST(LoadConfig, TutorialsYamlRunsUnchangedWithOneWarning) {
  ConfigSources sources;
  sources.files = {kConfigs / "dit_pretrain_example.yaml"};
  const LoadedConfig loaded = load_config(sources);
  EXPECT_EQ(loaded.config.model.num_attention_heads, 16);
  EXPECT_EQ(loaded.config.dataset.task_encoder_seq_length, 15360);
  EXPECT_EQ(loaded.config.train.global_batch_size, 8);
  EXPECT_EQ(loaded.config.checkpoint.save, "dfm_experiment");
  EXPECT_TRUE(loaded.config.checkpoint.load.empty())
      << "one folder for both means: continue what is there, if anything";
  for (const char* name :
       {"model.qkv_format", "model.vae_cache_folder", "dataset.packing_buffer_size", "checkpoint.load_optim",
        "train.eval_interval", "train.eval_iters", "logger.wandb_project"}) {
    EXPECT_NE(loaded.foreign_warning.find(name), std::string::npos) << name;
  }
  EXPECT_EQ(loaded.foreign_warning.find('\n'), std::string::npos);
}

TEST(LoadConfig, TutorialsNamesForTheRunFolderAreTaken) {
  ConfigSources sources;
  sources.overrides = {"checkpoint.checkpoint_dir=/runs/a", "checkpoint.load_checkpoint=/runs/b"};
  const LoadedConfig loaded = load_config(sources);
  EXPECT_EQ(loaded.config.checkpoint.save, "/runs/a");
  EXPECT_EQ(loaded.config.checkpoint.load, "/runs/b");
  EXPECT_EQ(loaded.foreign_warning, "");
}

TEST(LoadConfig, ParallelSizesMustDivideTheHeads) {
  ConfigSources sources;
  sources.overrides = {"model.tensor_model_parallel_size=4", "model.sequence_parallel=true",
                       "model.context_parallel_size=3"};
  EXPECT_EQ(load_error(sources), "");
  sources.overrides = {"model.tensor_model_parallel_size=6"};
  EXPECT_EQ(load_error(sources),
            "model.tensor_model_parallel_size: got 6, want a divisor of num_attention_heads = 16 (command line); hint: "
            "set model.tensor_model_parallel_size=2");
  sources.overrides = {"model.cp_comm_type=a2a", "model.context_parallel_size=3"};
  EXPECT_EQ(load_error(sources),
            "model.cp_comm_type: got a2a with context_parallel_size = 3, want a context_parallel_size that divides the "
            "16 heads of a tensor rank (command line); hint: set model.cp_comm_type=p2p");
  sources.overrides = {"model.pipeline_model_parallel_size=2"};
  EXPECT_EQ(load_error(sources),
            "model.pipeline_model_parallel_size: got 2, want 1: this version has no pipeline (command line)");
}

TEST(LoadConfig, NamesOfBridgeForRanksAreTaken) {
  ConfigSources sources;
  sources.overrides = {"ddp.grad_reduce_in_fp32=true", "ddp.use_distributed_optimizer=false",
                       "dist.distributed_timeout_minutes=3", "ddp.data_parallel_sharding_strategy=no_shard",
                       "comm_overlap.tp_comm_overlap=false"};
  const LoadedConfig loaded = load_config(sources);
  EXPECT_FALSE(loaded.config.ddp.use_distributed_optimizer);
  EXPECT_EQ(loaded.config.dist.distributed_timeout_minutes, 3);
  EXPECT_NE(loaded.foreign_warning.find("ddp.grad_reduce_in_fp32"), std::string::npos) << loaded.foreign_warning;
  sources.overrides = {"optimizer.use_distributed_optimizer=false"};
  EXPECT_FALSE(load_config(sources).config.ddp.use_distributed_optimizer);
  sources.overrides = {"ddp.use_megatron_fsdp=true"};
  EXPECT_NE(load_error(sources).find("ddp.use_megatron_fsdp"), std::string::npos);
}

TEST(LoadConfig, ShapesThatTheModelCannotHaveAreErrors) {
  ConfigSources sources;
  sources.overrides = {"model.num_attention_heads=7"};
  EXPECT_EQ(load_error(sources),
            "model.num_attention_heads: got 7, want a divisor of hidden_size = 1152 (command line)");
  sources.overrides = {"model.hidden_size=200", "model.num_attention_heads=4"};
  EXPECT_EQ(load_error(sources),
            "model.hidden_size: got 200, want a multiple of 16 (command line); hint: hidden_size=208");
}

TEST(LoadConfig, MissingFileIsOneOfTheErrors) {
  ConfigSources sources;
  sources.files = {"/nonexistent/my.yaml"};
  sources.overrides = {"model.num_layer=6"};
  const std::string error = load_error(sources);
  EXPECT_EQ(error.substr(0, 37), "--config-file: /nonexistent/my.yaml: ") << error;
  EXPECT_NE(error.find("\nmodel.num_layer: got no such option"), std::string::npos) << error;
}

TEST(LoadConfig, StoredConfigStandsInTheRecipesPlace) {
  TrainConfig stored = load_recipe("demo").config;
  stored.train.train_iters = 77;
  stored.train.global_batch_size = 5;
  ConfigSources sources;
  sources.stored_yaml = config::to_yaml(stored, config::YamlStyle::kFull);
  sources.stored_where = "iter_0000010/run_config.yaml";
  sources.overrides = {"train.train_iters=99"};
  const LoadedConfig loaded = load_config(sources);
  EXPECT_EQ(loaded.config.model.hidden_size, 192);
  EXPECT_EQ(loaded.config.train.global_batch_size, 5);
  EXPECT_EQ(loaded.config.train.train_iters, 99);
  EXPECT_EQ(loaded.explicit_options, (config::Origins{{"train.train_iters", "command line"}}));
}

}  // namespace
}  // namespace dfm::train
