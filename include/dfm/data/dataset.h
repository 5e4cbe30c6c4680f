#pragma once
// A prepared data set, opened for random access by sample: dfm's own, DFM's, any webdataset with json, pth and pickle
// parts (with or without `energon prepare`), or several of them, blended as Energon's Metadataset YAMLs say.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dfm/data/card.h"

namespace dfm::data {

// One row of dfm-index.bin: where the parts of a sample lie, and its size without opening them.
struct SampleEntry {
  std::string key;
  std::uint32_t shard = 0;
  struct Part {
    std::uint64_t offset = 0, size = 0;
    std::uint32_t checksum = 0;  // crc32c, checked on reading; 0: not known (a folder that dfm only indexed)
  } json, pth, pickle;
  std::int64_t channels = 16, frames = 1, height = 0, width = 0;  // latent
  std::int64_t text_length = 0;                                   // rows up to the last that is not zero
  std::int64_t text_width = 0;
  double fps = 0;  // of the json; 0 where it says nothing
};

struct Sample {
  at::Tensor latent_CTHW;  // bfloat16 as stored, finite; undefined when bad
  at::Tensor text_LE;      // bfloat16, text_length rows
  double fps = 30;         // of the json; 30 where it is unknown, as in DFM
  std::string caption;
  std::string problem;  // not empty: the sample is bad (NaN, wrong shape ...) and weighs 0
};

struct DatasetConfig;

class Dataset {
 public:
  // `path`: a folder, or a Metadataset YAML (.yaml, .yml). Entries of a folder are sorted by the bytes of their keys,
  // whatever the shards. Uses dfm-index.bin when it fits the shards; else scans the tars once and stores the index
  // beside the data, or in the user's cache when that is read-only.
  static std::shared_ptr<Dataset> open(const std::filesystem::path& path, const std::string& split = "train");
  // What dataset.path or dataset.blend say; both or neither are a ConfigError.
  static std::shared_ptr<Dataset> open(const DatasetConfig& config, const std::string& split = "train");
  virtual ~Dataset() = default;
  [[nodiscard]] virtual const std::filesystem::path& folder() const = 0;  // of a blend: its YAML
  [[nodiscard]] virtual std::string split() const { return "train"; }
  [[nodiscard]] virtual const std::vector<SampleEntry>& entries() const = 0;
  [[nodiscard]] virtual const DatasetCard& card() const = 0;  // of foreign folders: made from the first sample
  // Hash over keys and sizes, of a blend over all sets and their slots: what a checkpoint compares before it goes on.
  [[nodiscard]] virtual std::uint64_t fingerprint() const = 0;
  // The entry at `position` of the endless training stream. A pure function, so that no rank, worker or continued run
  // can disagree. Of one set: epoch after epoch of sample_at().
  [[nodiscard]] virtual std::size_t index_at(std::uint64_t seed, std::uint64_t position) const;
  [[nodiscard]] virtual std::string description() const { return folder().string(); }  // one line for people
  // Latents as they are stored; the loader applies the card's statistics. Thread safe. Damage of the file itself (cut
  // tar, bad pickle) is a DataError; a bad value inside is Sample::problem.
  [[nodiscard]] virtual Sample read(std::size_t index) const = 0;
};

}  // namespace dfm::data
