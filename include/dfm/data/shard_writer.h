#pragma once
// Writes a webdataset that dfm, DFM, Python webdataset and megatron-energon read: shards rank{r}-%06d.tar with the
// parts json, pickle, pth a sample, their .tar.idx, .nv-meta and dfm-index.bin. A shard has its final name only when
// it is whole and synced. Layout: docs/formats.md.
//
//   ShardWriter writer(folder, ShardLimits{});
//   writer.add(make_sample_parts(key, latent_CTHW, text_LE, description));  // parts may be made on any thread
//   writer.close_shard();
//   finish_dataset(folder, writer.shards(), samples, card);
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dfm/data/card.h"
#include "dfm/data/dataset.h"

namespace dfm::data {

inline constexpr std::int64_t kTextRows = 512;  // rows of the .pickle part, zero after the text

// A folder that holds this and no card was not finished: the writer of the data set keeps its state there.
inline constexpr const char* kUnfinishedName = ".dfm_prepare";

// The last shard may be smaller; a sample larger than max_bytes has a shard of its own.
struct ShardLimits {
  std::int64_t max_count = 10000;
  std::uint64_t max_bytes = std::uint64_t{256} << 20;
};

// What the json part says besides the sizes that follow from the latent.
struct SampleDescription {
  double fps = 0;  // 0: a picture, or unknown
  std::string caption;
  std::string source;                                              // name of the file it was made from
  std::int64_t num_frames = 1, image_height = 0, image_width = 0;  // pixels that were encoded
  std::int64_t original_height = 0, original_width = 0;
};

// A sample as it lies in a shard. `entry` lacks the shard and the offsets.
struct SampleParts {
  SampleEntry entry;
  std::string json, pickle, pth;
  [[nodiscard]] std::uint64_t num_bytes() const { return json.size() + pickle.size() + pth.size(); }
};

// latent [C, T, H, W] and text [L, E] with L <= 512, any floating type: stored as bfloat16. A latent that is not
// finite or above 1000 is a DataError (no reader would take it).
SampleParts make_sample_parts(const std::string& key, const at::Tensor& latent_CTHW, const at::Tensor& text_LE,
                              const SampleDescription& description);

// "000042": key of sample `index` of the source.
std::string sample_key(std::uint64_t index);

class ShardWriter {
 public:
  // Called before a full shard gets its final name, with its file name and its samples: what has to be durable before
  // the shard counts goes here.
  using BeforeCommit = std::function<void(const std::string& shard, const std::vector<SampleEntry>& samples)>;

  // `finished_shards`: names of rank's shards that are complete already, in order; the next one gets the number after.
  ShardWriter(std::filesystem::path folder, ShardLimits limits, std::int64_t rank = 0,
              std::vector<std::string> finished_shards = {}, BeforeCommit before_commit = {});
  ~ShardWriter();  // an unfinished shard stays behind as .tar.tmp
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  void add(const SampleParts& parts);
  // Commits the shard being filled, if it holds a sample.
  void close_shard();
  [[nodiscard]] const std::vector<std::string>& shards() const;  // complete ones
  static std::string shard_name(std::int64_t rank, std::int64_t number);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The folder's shared files, in this order: missing .tar.idx, .nv-meta (all shards in train), dfm-index.bin, and last
// the card, whose presence means complete. `samples`: of all shards, their `shard` an index into `shards`.
void finish_dataset(const std::filesystem::path& folder, const std::vector<std::string>& shards,
                    std::vector<SampleEntry> samples, const DatasetCard& card);

}  // namespace dfm::data
