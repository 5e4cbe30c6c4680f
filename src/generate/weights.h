#pragma once
// From what --checkpoint names to weights, the model's shape and the card of the data set that it was trained on.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dfm/checkpoint/tensor_file.h"
#include "dfm/data/card.h"
#include "dfm/models/dit/dit_config.h"

namespace dfm::generate {

// The weight file of a weight file (links followed), an iteration folder or a run folder. CheckpointError when there
// is none.
std::filesystem::path find_weights(const std::filesystem::path& checkpoint);

// What the run that made the weights left beside them, in extra_state.pt; defaults where there is none.
struct StoredFacts {
  std::optional<data::DatasetCard> card;
  std::int64_t patch_spatial = models::DitConfig{}.patch_spatial;  // not visible in the weights' shapes
  std::int64_t patch_temporal = models::DitConfig{}.patch_temporal;
};
StoredFacts stored_facts(const std::filesystem::path& weights);

// The shape of the DiT whose tensors these are, in DFM's naming (docs/formats.md), with or without `module.`, layers
// numbered or stacked. CheckpointError when they are not a DiT's.
models::DitConfig infer_config(const std::vector<checkpoint::TensorFile::Entry>& entries, const std::string& where,
                               const StoredFacts& facts = {});

}  // namespace dfm::generate
