#pragma once
// Energon's Metadataset YAMLs, V1 and V2: which data sets a split is blended of. Layout: docs/formats.md.
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace dfm::formats {

// `kSingle`: one data set, taken as it is. `kWeighted`: shares are weights. `kEpochized`: shares are repetitions.
enum class MetadatasetMode { kSingle, kWeighted, kEpochized };

struct MetadatasetPart {
  std::filesystem::path path;  // of a data set's folder or another YAML; what was relative is so to this YAML's folder
  std::string split_part;      // empty: the split that was asked for
  double share = 1;            // finite and above 0
  std::string place;           // "blend.yaml:7"
};

struct MetadatasetSplit {
  MetadatasetMode mode = MetadatasetMode::kSingle;
  std::vector<MetadatasetPart> parts;  // at least one
};

using Metadataset = std::map<std::string, MetadatasetSplit>;

// Keys that do not change which samples there are (subflavors, aux, ...) are passed over; what dfm cannot follow (join,
// subset, a split file of another name, unknown keys) is a DataError with its line. No other file is looked at.
Metadataset read_metadataset(const std::filesystem::path& file);

}  // namespace dfm::formats
