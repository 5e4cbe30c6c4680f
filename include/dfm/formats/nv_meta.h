#pragma once
// `.nv-meta` of a webdataset folder: what `energon prepare` leaves there and energon 6 and 7 train from.
//
//   NvMeta meta;
//   meta.shard_counts = {{"rank0-000000.tar", 13}, {"rank1-000000.tar", 14}};
//   meta.splits = {{"train", {"rank0-000000.tar"}}, {"val", {"rank1-000000.tar"}}, {"test", {}}};
//   write_nv_meta("butterflies", meta);
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dfm::formats {

struct NvMeta {
  // Shards relative to the data set's folder, with their number of samples, sorted by name.
  std::vector<std::pair<std::string, std::uint64_t>> shard_counts;
  std::map<std::string, std::vector<std::string>> splits;  // train, val, test: shard names, braces expanded
  std::vector<std::string> exclude;                        // `shard` or `shard/key`, braces expanded

  // Whether a split leaves out the shard, or the sample of that key in it.
  [[nodiscard]] bool excludes(const std::string& shard) const;
  [[nodiscard]] bool excludes(const std::string& shard, const std::string& key) const;
};

// Writes dataset.yaml, .info.yaml, .info.json and split.yaml into `<dataset>/.nv-meta`, each atomically.
void write_nv_meta(const std::filesystem::path& dataset, const NvMeta& meta);
// Reads split.yaml and .info.json or .info.yaml; nothing when there is no `<dataset>/.nv-meta/split.yaml`. Counts are
// empty when neither info file is there. A shard name that leaves the folder is a DataError.
std::optional<NvMeta> read_nv_meta(const std::filesystem::path& dataset);

// `a{0..2}b`, `{000..012}`, `{x,y}` and their products, as the shell does; text without braces is returned alone.
std::vector<std::string> expand_braces(const std::string& pattern);

}  // namespace dfm::formats
