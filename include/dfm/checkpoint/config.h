#pragma once
// Section `checkpoint` of `dfm train`.
#include <cstdint>
#include <filesystem>
#include <string>

#include "dfm/config/schema.h"

namespace dfm::checkpoint {

struct CheckpointConfig {
  std::filesystem::path save = "checkpoints/dit_butterfly";
  std::filesystem::path load;
  std::filesystem::path pretrained_checkpoint;
  std::int64_t save_interval = 2000;
  std::int64_t most_recent_k = -1;
  bool resume = true;
  static constexpr auto fields() {
    using config::field;
    return config::fields<CheckpointConfig>(
        field("save", &CheckpointConfig::save,
              "Run folder: checkpoints, metrics and plots (also: checkpoint.checkpoint_dir)"),
        field("load", &CheckpointConfig::load,
              "Run or iteration folder to continue from (also: checkpoint.load_checkpoint)"),
        field("pretrained_checkpoint", &CheckpointConfig::pretrained_checkpoint,
              "Weights to start from: file, iteration or run folder"),
        field("save_interval", &CheckpointConfig::save_interval, "Steps between checkpoints; 0: only at the end",
              config::non_negative),
        field("most_recent_k", &CheckpointConfig::most_recent_k, "Checkpoints to keep; -1: all"),
        field("resume", &CheckpointConfig::resume,
              "Continue from a complete checkpoint found in `save`; false refuses to"));
  }
};

}  // namespace dfm::checkpoint
