#pragma once
// One folder as a data set: what Dataset::open does with the leaves of a blend.
#include <filesystem>
#include <memory>
#include <string>

#include "dfm/data/dataset.h"

namespace dfm::data {

std::shared_ptr<Dataset> open_folder(const std::filesystem::path& folder, const std::string& split);

}  // namespace dfm::data
