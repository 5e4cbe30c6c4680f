#pragma once
// Data sets: folders of `dfm prepare`, of DFM and of `energon prepare`, Metadatasets, single tars.
#include <filesystem>
#include <string>
#include <vector>

#include "dfm/data/dataset.h"
#include "dfm/inspect/options.h"
#include "inspect/facts.h"
#include "inspect/shards.h"

namespace dfm::inspect {

bool is_dataset_folder(const std::filesystem::path& folder);

// `problem`: what is damaged.
Facts inspect_dataset(const InspectOptions& options, std::string& problem);  // a folder or a Metadataset's YAML
Facts inspect_tar(const InspectOptions& options, std::string& problem);

// `count` numbers below `size`, evenly spread, ascending.
std::vector<std::size_t> spread(std::size_t size, std::size_t count);

}  // namespace dfm::inspect
