#pragma once
// The rules of cmake/DfmLayers.cmake as a function of a source tree: which file includes what it may not.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace dfm::layering {

struct Layer {
  std::string name;
  std::vector<std::string> uses;         // layers
  std::vector<std::string> third_party;  // "fmt" stands for fmt/..., "zlib.h" for itself
};

// The rows of DFM_LAYER_TABLE, lowest first.
std::vector<Layer> read_table(const std::filesystem::path& dfm_layers_cmake);

// One line a violation: "src/models/a.cpp:3: includes dfm/train/b.h: models may not use train". Looks at src/<layer>
// and include/dfm/<layer> under `root`; a folder that is no layer is a violation too.
std::vector<std::string> violations(const std::filesystem::path& root, const std::vector<Layer>& table);

// Lines of the layers that must not know of ranks which name one (comments and strings do not count).
std::vector<std::string> rank_names(const std::filesystem::path& root, const std::vector<std::string>& layers);

}  // namespace dfm::layering
