#pragma once
// An iteration folder of a run: what train writes into it and takes out of it (docs/formats.md).
#include <filesystem>
#include <string>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/comm/world.h"
#include "dfm/models/dit/dit.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/train/config.h"
#include "train/resume.h"

namespace dfm::train {

// Whole or not at all, written by all ranks; older ones are removed as checkpoint.most_recent_k says.
checkpoint::IterationFolder save_checkpoint(const TrainConfig& config, const ExtraState& state,
                                            const models::Dit& model, parallel::DistributedOptimizer& optimizer,
                                            comm::World& world);

ExtraState read_extra_state(const std::filesystem::path& iteration_folder);
// Masters and moments, and with them the model's weights. All ranks call it, each gets its own slices.
void load_training_state(const std::filesystem::path& iteration_folder, parallel::DistributedOptimizer& optimizer,
                         comm::World& world);
// Weights alone: `path` is a weight file (dfm's, DFM's), an iteration folder or a run folder. Gives the file read.
std::filesystem::path load_weights(const std::filesystem::path& path, models::Dit& model);

// Bytes of all regular files in a folder.
std::uint64_t folder_bytes(const std::filesystem::path& folder);

}  // namespace dfm::train
