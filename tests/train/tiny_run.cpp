#include "train/tiny_run.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "dfm/base/philox.h"
#include "dfm/data/shard_writer.h"

namespace dfm::test {
namespace {

namespace fs = std::filesystem;

at::Tensor random_tensor(std::vector<std::int64_t> shape, std::uint64_t stream) {
  const at::Tensor tensor = at::empty(shape, at::kFloat);
  philox_normal(99, stream, Purpose::kSynthetic, 0,
                {tensor.mutable_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())});
  return tensor;
}

}  // namespace

void write_tiny_dataset(const fs::path& folder, std::int64_t count, std::uint64_t salt) {
  struct Size {
    std::int64_t frames, height, width;
  };
  const std::vector<Size> sizes = {{1, 4, 4}, {3, 4, 6}, {1, 6, 8}, {2, 8, 4}, {3, 8, 8}, {1, 8, 8}};
  fs::create_directories(folder);
  data::ShardLimits limits;
  limits.max_count = 7;
  std::vector<data::SampleEntry> entries;
  data::ShardWriter writer(folder, limits, 0, {}, [&](const std::string&, const auto& samples) {
    const auto shard = static_cast<std::uint32_t>(entries.empty() ? 0 : entries.back().shard + 1);
    for (data::SampleEntry entry : samples) {
      entry.shard = shard;
      entries.push_back(std::move(entry));
    }
  });
  data::DatasetCard card;
  card.text_width = kTextWidth;
  card.num_samples = count;
  for (std::int64_t i = 0; i < count; ++i) {
    const Size& size = sizes[static_cast<std::size_t>(i) % sizes.size()];
    const auto stream = static_cast<std::uint64_t>(i) + salt * 1000;
    data::SampleDescription description;
    description.fps = size.frames > 1 ? 12 : 0;
    description.caption = "sample " + std::to_string(i);
    description.num_frames = 1 + 4 * (size.frames - 1);
    description.image_height = 8 * size.height;
    description.image_width = 8 * size.width;
    (size.frames > 1 ? card.num_clips : card.num_images) += 1;
    writer.add(data::make_sample_parts(data::sample_key(static_cast<std::uint64_t>(i)),
                                       random_tensor({16, size.frames, size.height, size.width}, 2 * stream),
                                       random_tensor({1 + i % 9, kTextWidth}, 2 * stream + 1), description));
  }
  writer.close_shard();
  data::finish_dataset(folder, writer.shards(), entries, card);
}

train::TrainConfig tiny_config(const fs::path& dataset, const fs::path& run_folder) {
  train::TrainConfig config;
  config.model.num_layers = 2;
  config.model.hidden_size = 32;
  config.model.num_attention_heads = 2;
  config.train.train_iters = 6;
  config.train.global_batch_size = 6;
  config.optimizer.lr = 1e-3;
  config.optimizer.min_lr = 1e-4;
  config.scheduler.lr_warmup_iters = 2;
  config.scheduler.lr_decay_iters = 24;
  config.dataset.path = dataset;
  config.dataset.task_encoder_seq_length = 256;
  config.checkpoint.save = run_folder;
  config.checkpoint.save_interval = 0;
  return config;
}

TinyResult run_tiny(const train::TrainConfig& config, train::RunContext context) {
  TinyResult result;
  char* text = nullptr;
  std::size_t size = 0;
  std::FILE* stream = open_memstream(&text, &size);
  context.out = stream;
  const auto on_step = context.on_step;
  context.on_step = [&](std::int64_t iteration, double loss) {
    result.losses.push_back(loss);
    if (on_step) on_step(iteration, loss);
  };
  try {
    result.summary = train::run(config, context);
  } catch (...) {
    std::fclose(stream);
    std::free(text);
    throw;
  }
  std::fclose(stream);
  result.output.assign(text, size);
  std::free(text);
  return result;
}

}  // namespace dfm::test
