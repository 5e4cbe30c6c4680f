#pragma once
// `dfm train`: one call from a merged configuration to a trained model in a run folder.
//
//   train::RunContext context;
//   context.device = at::kCPU;
//   const train::Summary summary = train::run(config, context);
//   return static_cast<int>(summary.exit_code);
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "dfm/base/error.h"
#include "dfm/comm/world.h"
#include "dfm/train/config.h"

namespace dfm::train {

struct RunContext {
  at::Device device = at::kCPU;
  std::shared_ptr<comm::World> world = comm::World::solo();
  // Dotted names of the options that a YAML file or the command line set, and where: {"train.train_iters", "command
  // line"}. What is not here came from the recipe and gives way to the stored configuration of a continued run.
  std::map<std::string, std::string> explicit_options;
  // The configuration with the YAML text of a stored run_config.yaml in the recipe's place and the same YAML files and
  // command line over it. Without it a continued run uses the configuration as it is.
  std::function<TrainConfig(const std::string& stored_yaml, const std::string& where)> over_stored;
  std::string recipe;         // named in the first lines, if any
  std::FILE* out = stdout;    // the console lines
  bool watch_signals = true;  // SIGTERM and SIGINT finish the step, save and end the run
  // Called after each step that was applied (tests, examples).
  std::function<void(std::int64_t iteration, double loss)> on_step;
};

struct Summary {
  std::int64_t iteration = 0;  // completed in all
  std::int64_t steps = 0;      // by this call
  double loss = 0;             // of the last step; 0 when there was none
  double seconds = 0;          // of the loop
  std::filesystem::path run_folder;
  std::filesystem::path checkpoint;    // the newest iteration folder
  ExitCode exit_code = ExitCode::kOk;  // kTerminated or kInterrupted after a save on a signal
};

// Throws dfm::Error: what ends a run, one line. Refuses a world of more than one rank.
Summary run(const TrainConfig& config, const RunContext& context);

}  // namespace dfm::train
