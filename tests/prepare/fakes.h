#pragma once
// Encoders that are watched, and media for them.
#include <ATen/ATen.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/data/source.h"
#include "dfm/models/encoders.h"

namespace dfm::test {

// Each 8x8 block of every fourth frame becomes its mean, in 16 channels. Gains from batches, or not; what a picture is
// encoded to does not depend on that.
class FakeTokenizer : public models::VideoTokenizer {
 public:
  explicit FakeTokenizer(bool gains) : gains_(gains) {}
  [[nodiscard]] std::string name() const override { return "fake tokenizer"; }
  [[nodiscard]] std::int64_t latent_channels() const override { return 16; }
  [[nodiscard]] std::int64_t temporal_compression() const override { return 4; }
  [[nodiscard]] std::int64_t spatial_compression() const override { return 8; }
  [[nodiscard]] models::LatentStatistics latent_statistics() const override { return statistics; }
  [[nodiscard]] bool gains_from_batches() const override { return gains_; }
  [[nodiscard]] at::Tensor decode(const at::Tensor& latent_CTHW) const override { return latent_CTHW; }

  [[nodiscard]] at::Tensor encode(const at::Tensor& pixels_CTHW) const override {
    note(1, pixels_CTHW.sizes());
    return encode_one(pixels_CTHW);
  }
  [[nodiscard]] at::Tensor encode_batch(const at::Tensor& pixels_NCTHW) const override {
    note(pixels_NCTHW.size(0), pixels_NCTHW.sizes().slice(1));
    std::vector<at::Tensor> latents;
    for (const at::Tensor& pixels_CTHW : pixels_NCTHW.unbind(0)) latents.push_back(encode_one(pixels_CTHW));
    return at::stack(latents);
  }

  struct Batch {
    std::int64_t size, frames, height, width;
    bool operator==(const Batch&) const = default;
  };
  [[nodiscard]] std::vector<Batch> batches() const {
    const std::lock_guard lock(mutex_);
    return batches_;
  }
  [[nodiscard]] std::int64_t num_encoded() const {
    std::int64_t count = 0;
    for (const Batch& batch : batches()) count += batch.size;
    return count;
  }

  models::LatentStatistics statistics;
  // Called with what is encoded, as float pixels.
  std::function<void(const at::Tensor& pixels_CTHW)> on_encode;
  double white_becomes = 1;  // times the latent of a white picture

 private:
  void note(std::int64_t size, at::IntArrayRef sizes) const {
    const std::lock_guard lock(mutex_);
    batches_.push_back({size, sizes[1], sizes[2], sizes[3]});
  }
  [[nodiscard]] at::Tensor encode_one(const at::Tensor& given_CTHW) const {
    at::Tensor pixels_CTHW = given_CTHW.to(at::kFloat);
    if (given_CTHW.scalar_type() == at::kByte) pixels_CTHW = pixels_CTHW.div(127.5).sub(1);
    if (on_encode) on_encode(pixels_CTHW);
    const at::Tensor frames_THW = pixels_CTHW.mean(0).slice(0, 0, std::nullopt, 4);
    const at::Tensor means_1THW = at::avg_pool2d(frames_THW.unsqueeze(1), {8, 8}).transpose(0, 1);
    const at::Tensor scales_C111 = at::arange(1, 17, at::kFloat).div(16).reshape({16, 1, 1, 1});
    const bool is_white = pixels_CTHW.min().item<float>() == 1;
    return means_1THW * scales_C111 * (is_white ? white_becomes : 1.0);
  }

  bool gains_;
  mutable std::mutex mutex_;
  mutable std::vector<Batch> batches_;
};

// A row a letter.
class FakeTextEncoder : public models::TextEncoder {
 public:
  [[nodiscard]] std::string name() const override { return "fake text encoder"; }
  [[nodiscard]] std::int64_t width() const override { return 6; }
  [[nodiscard]] std::int64_t max_length() const override { return 512; }
  [[nodiscard]] std::int64_t num_parameters() const override { return parameters; }
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const override {
    if (on_encode) on_encode(captions);
    {
      const std::lock_guard lock(mutex_);
      calls_.push_back(captions);
    }
    std::vector<at::Tensor> all;
    for (const std::string& caption : captions) {
      const at::Tensor rows = at::ones({static_cast<std::int64_t>(caption.size()) + 1, width()}, at::kFloat);
      for (std::size_t i = 0; i < caption.size(); ++i) rows[static_cast<std::int64_t>(i)].fill_(caption[i] / 128.0);
      all.push_back(rows);
    }
    return all;
  }
  [[nodiscard]] std::vector<std::vector<std::string>> calls() const {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  [[nodiscard]] std::vector<std::string> captions() const {
    std::vector<std::string> all;
    for (const auto& call : calls()) all.insert(all.end(), call.begin(), call.end());
    return all;
  }

  std::function<void(const std::vector<std::string>&)> on_encode;
  std::int64_t parameters = 0;

 private:
  mutable std::mutex mutex_;
  mutable std::vector<std::vector<std::string>> calls_;
};

// Pictures of one shade and given sizes, counted while they are between load() and what releases them.
class FakeSource : public data::Source {
 public:
  struct Item {
    std::int64_t frames = 1, height = 16, width = 16;
    std::string caption;
  };
  explicit FakeSource(std::vector<Item> items) : items_(std::move(items)) {}
  [[nodiscard]] std::size_t size() const override { return items_.size(); }
  [[nodiscard]] std::string name(std::size_t index) const override { return "item " + std::to_string(index); }
  [[nodiscard]] data::SourceItem item(std::size_t index) const override {
    return {.name = name(index), .caption = items_[index].caption, .is_clip = items_[index].frames > 1};
  }
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const data::LoadLimits&) const override {
    return items_[index].frames * items_[index].height * items_[index].width;
  }
  [[nodiscard]] data::SourceMedia load(std::size_t index, const data::LoadLimits&) const override {
    if (on_load) on_load(index);
    const Item& item = items_[index];
    return {.rgb_THW3 =
                at::full({item.frames, item.height, item.width, 3}, static_cast<std::int64_t>(index % 200), at::kByte),
            .fps = item.frames > 1 ? 24.0 : 0.0,
            .original_height = item.height,
            .original_width = item.width,
            .original_frames = item.frames};
  }
  [[nodiscard]] std::string description() const override { return "fake"; }
  [[nodiscard]] std::string default_encoder() const override { return "builtin"; }

  std::function<void(std::size_t index)> on_load;

 private:
  std::vector<Item> items_;
};

}  // namespace dfm::test
