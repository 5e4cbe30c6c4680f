#pragma once
// A data set of a few small pictures and clips, and a model that trains on it in milliseconds.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dfm/data/dataset.h"
#include "dfm/train/config.h"
#include "dfm/train/trainer.h"
#include "support/temp_folder.h"

namespace dfm::test {

inline constexpr std::int64_t kTextWidth = 24;

// Writes `count` samples: pictures and clips of several sizes (4 to 48 tokens), texts of 1 to 9 rows. `salt` changes
// the values, not the sizes.
void write_tiny_dataset(const std::filesystem::path& folder, std::int64_t count, std::uint64_t salt = 0);

// 2 layers of width 32 on that data; 6 samples a step.
train::TrainConfig tiny_config(const std::filesystem::path& dataset, const std::filesystem::path& run_folder);

struct TinyResult {
  train::Summary summary;
  std::vector<double> losses;
  std::string output;  // what it printed
};
// Runs on the CPU; `context` may hold explicit options and callbacks.
TinyResult run_tiny(const train::TrainConfig& config, train::RunContext context = {});

}  // namespace dfm::test
