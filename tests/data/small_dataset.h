#pragma once
// Small data sets for tests: sample i has a latent of frames x height x width that depends on i, filled from i.
#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "dfm/data/shard_writer.h"

namespace dfm::test {

inline constexpr std::int64_t kTextWidth = 8;

inline at::Tensor small_latent(std::int64_t i) {
  const std::int64_t frames = i % 3 == 0 ? 3 : 1;
  const at::Tensor ramp = at::arange(16 * frames * 4 * (4 + 2 * (i % 2)), at::kFloat);
  return ((ramp + static_cast<double>(i)).remainder(17.0) - 8.0).reshape({16, frames, 4, -1});
}

inline at::Tensor small_text(std::int64_t i) {
  return (at::arange((1 + i) * kTextWidth, at::kFloat).remainder(5.0) + 1.0).reshape({1 + i, kTextWidth});
}

inline data::SampleParts small_parts(std::int64_t i) {
  const at::Tensor latent = small_latent(i);
  data::SampleDescription description;
  description.fps = latent.size(1) > 1 ? 12 : 0;
  description.caption = "caption " + std::to_string(i);
  description.source = "file " + std::to_string(i);
  description.num_frames = 1 + 4 * (latent.size(1) - 1);
  description.image_height = 8 * latent.size(2), description.image_width = 8 * latent.size(3);
  return data::make_sample_parts(data::sample_key(static_cast<std::uint64_t>(i)), latent, small_text(i), description);
}

inline data::DatasetCard small_card(std::int64_t count) {
  data::DatasetCard card;
  card.num_samples = count;
  card.text_width = kTextWidth;
  return card;
}

// Writes samples 0 to count - 1. `with_shared_files`: index, .nv-meta and card, too.
inline std::vector<std::string> write_small_dataset(const std::filesystem::path& folder, std::int64_t count,
                                                    std::int64_t samples_a_shard, bool with_shared_files = true) {
  std::filesystem::create_directories(folder);
  std::vector<data::SampleEntry> entries;
  std::uint32_t shard = 0;
  data::ShardWriter writer(folder, {.max_count = samples_a_shard}, 0, {},
                           [&](const std::string&, const std::vector<data::SampleEntry>& samples) {
                             for (data::SampleEntry entry : samples) {
                               entry.shard = shard;
                               entries.push_back(entry);
                             }
                             ++shard;
                           });
  for (std::int64_t i = 0; i < count; ++i) writer.add(small_parts(i));
  writer.close_shard();
  if (with_shared_files) data::finish_dataset(folder, writer.shards(), entries, small_card(count));
  return writer.shards();
}

}  // namespace dfm::test
