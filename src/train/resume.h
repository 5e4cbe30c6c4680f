#pragma once
// Whether and from where a run goes on, and with which configuration: the rules of `checkpoint.load`, `save`, `resume`.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/data/dataset.h"
#include "dfm/train/config.h"
#include "dfm/train/trainer.h"

namespace dfm::train {

struct ResumePlan {
  TrainConfig config;  // to train with; paths of the data set and the run folder as they are to be stored
  std::optional<checkpoint::IterationFolder> from;
  std::vector<std::string> lines;  // what is said before anything else
};

// Called by all ranks; what is found in `save` is verified, every block of it, before it counts. ConfigError: a refused
// continuation, a run folder that holds something else, a `load` that would fork the run in `save`. CheckpointError:
// nothing to load.
ResumePlan plan_resume(const TrainConfig& config, const RunContext& context);

// What extra_state.pt says.
struct ExtraState {
  std::int64_t iteration = 0;
  std::int64_t consumed_samples = 0;
  std::uint64_t seed = 0;
  std::int64_t dataset_num_samples = 0;
  std::uint64_t dataset_fingerprint = 0;
  models::DitConfig model;
  std::string dataset_card;  // JSON
  Precision precision = Precision::kFp32;
};
checkpoint::Scalars to_scalars(const ExtraState& state);
ExtraState extra_state_from(const checkpoint::Scalars& scalars, const std::string& where);

// A changed model shape, seed or data set does not continue a run: ConfigError or DataError that names the option.
void check_same_run(const ExtraState& stored, const TrainConfig& config, const data::Dataset& dataset,
                    const RunContext& context, const std::filesystem::path& from);

// model.crossattn_emb_size and model.in_channels are the data set's unless YAML or command line say otherwise, and then
// they must agree with it: ConfigError.
void follow_dataset(models::DitConfig& model, const data::DatasetCard& card, const std::filesystem::path& folder,
                    const RunContext& context);

}  // namespace dfm::train
