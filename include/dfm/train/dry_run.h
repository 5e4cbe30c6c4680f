#pragma once
// `dfm train --dry-run`: what a configuration means on a number of ranks, without any of them: layout, parameters,
// memory by part, bytes communicated. All of it is arithmetic; docs/parallelism.md has the formulas.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/train/config.h"

namespace dfm::train {

struct MemoryEstimate {  // bytes on the fullest rank
  std::int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;
  [[nodiscard]] std::int64_t total() const { return weights + gradients + optimizer + activations; }
};

struct CommunicationEstimate {  // bytes that a rank sends in a step
  std::int64_t tensor = 0, context = 0, gradients = 0, parameters = 0;
};

struct DryRun {
  std::int64_t parameters = 0;       // of the model
  std::int64_t rank_parameters = 0;  // of the fullest rank
  std::int64_t row_tokens = 0;       // of the longest row, padding included
  std::int64_t rank_rows = 0;        // that the busiest data rank has in a step
  MemoryEstimate memory;
  CommunicationEstimate communication;
  std::vector<std::string> lines;  // all of it for people
};

// token_lengths: of the samples of a step, if known (they decide the rows); else rows are taken as full, one for each
// data rank. bf16: 2-byte weights and activations (float32 masters apart); else 4 bytes. ConfigError for a layout that
// the world does not allow.
DryRun dry_run(const TrainConfig& config, int world_size, bool bf16, const std::vector<std::int64_t>& token_lengths);

// Token lengths of the first step of dataset.path or blend; the model gets the data set's widths. Empty without a data
// set.
std::vector<std::int64_t> follow_dataset_for_dry_run(TrainConfig& config);

}  // namespace dfm::train
