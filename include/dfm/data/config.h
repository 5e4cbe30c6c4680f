#pragma once
// Section `dataset` of `dfm train`.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dfm/config/schema.h"

namespace dfm::data {

struct DatasetConfig {
  std::filesystem::path path;
  std::vector<std::string> blend;
  std::int64_t task_encoder_seq_length = 15360;
  std::int64_t num_workers = 2;
  bool allow_change = false;
  static constexpr auto fields() {
    using config::field;
    return config::fields<DatasetConfig>(
        field("path", &DatasetConfig::path,
              "Folder that `dfm prepare` wrote, any DFM webdataset, or a Metadataset YAML of Energon (--dataset-path)"),
        field(
            "blend", &DatasetConfig::blend,
            "In place of path, several such: [0.7, A, 0.3, B] with their weights, or [A, B] weighted by their samples"),
        field("task_encoder_seq_length", &DatasetConfig::task_encoder_seq_length, "Most tokens in a packed row",
              config::positive),
        field("num_workers", &DatasetConfig::num_workers, "Threads that read and decode samples", config::positive),
        field("allow_change", &DatasetConfig::allow_change,
              "Go on from a checkpoint although the data set, or its tokenizer, has changed"));
  }
};

// dataset.blend taken apart; a weight of 0 means: by the number of samples. ConfigError for what is neither of the two
// forms, or a weight that is not above 0.
struct BlendItem {
  double weight = 0;
  std::filesystem::path path;
};
std::vector<BlendItem> parse_blend(const std::vector<std::string>& blend);

// The same with absolute paths, so that they mean the same from wherever a run is continued.
std::vector<std::string> with_absolute_paths(const std::vector<std::string>& blend);

}  // namespace dfm::data
