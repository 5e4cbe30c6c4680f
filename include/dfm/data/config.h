#pragma once
// Section `dataset` of `dfm train`.
#include <cstdint>
#include <filesystem>
#include <string>

#include "dfm/config/schema.h"

namespace dfm::data {

struct DatasetConfig {
  std::filesystem::path path;
  std::int64_t task_encoder_seq_length = 15360;
  std::int64_t num_workers = 2;
  bool allow_change = false;
  static constexpr auto fields() {
    using config::field;
    return config::fields<DatasetConfig>(
        field("path", &DatasetConfig::path, "Folder that `dfm prepare` wrote, or any DFM webdataset (--dataset-path)"),
        field("task_encoder_seq_length", &DatasetConfig::task_encoder_seq_length, "Most tokens in a packed row",
              config::positive),
        field("num_workers", &DatasetConfig::num_workers, "Threads that read and decode samples", config::positive),
        field("allow_change", &DatasetConfig::allow_change,
              "Go on from a checkpoint although the data set has changed"));
  }
};

}  // namespace dfm::data
