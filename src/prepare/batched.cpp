#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/data/ordered_work.h"
#include "prepare/latent_shelf.h"
#include "prepare/stream.h"

namespace dfm::prepare {
namespace {

// Serialising a sample takes a core some milliseconds, mostly for the checksums of a megabyte of text rows.
std::int64_t num_finishers(std::int64_t num_workers) { return std::clamp<std::int64_t>(num_workers / 2, 2, 6); }

class Batched : public ResultStream {
 public:
  Batched(const data::Source& source, const data::LoadLimits& limits, const std::vector<std::uint64_t>& items,
          const Encoders& encoders, Texts& texts, const StreamOptions& options)
      : items_(items),
        encoders_(encoders),
        texts_(texts),
        device_(options.device),
        // A tokenizer that gains nothing gets one item at a time.
        grouper_(encoders.tokenizer->gains_from_batches() ? options.groups : GroupLimits{.max_pixels = 0}),
        loader_(source, limits, /*is_pinned=*/!options.device.is_cpu(), options.most_loaded_bytes),
        shelf_(options.most_latent_bytes),
        loading_(0, items.size(), static_cast<std::uint64_t>(4 * options.num_workers + 2)),
        finishing_(0, items.size(), static_cast<std::uint64_t>(4 * num_finishers(options.num_workers))),
        loaders_(options.num_workers, loading_, [this](std::uint64_t number) { return load(number); }),
        finishers_(num_finishers(options.num_workers), finishing_,
                   [this](std::uint64_t number) { return finish(number); }),
        encoder_([this] { encode_all(); }) {}

  ~Batched() override {
    finishing_.stop();
    loading_.stop();
    loader_.stop();
    shelf_.stop();
    texts_.stop();
    encoder_.join();
  }

  std::optional<Result> next() override { return finishing_.next(); }

 private:
  LoadedItem load(std::uint64_t number) {
    const c10::InferenceMode inference;
    const c10::DeviceGuard guard(device_);
    at::set_num_threads(1);
    return loader_.load(number, items_[number]);
  }

  void encode_all() {
    const c10::InferenceMode inference;
    const c10::DeviceGuard guard(device_);
    try {
      for (std::uint64_t number = 0; std::optional<LoadedItem> item = loading_.next(); ++number) {
        loader_.release(number);
        take(number, std::move(*item));
        shelf_.wait_for_room();
        if (shelf_.is_stopped()) return;
      }
      for (const Group& group : grouper_.finish()) {
        if (shelf_.is_stopped()) return;
        encode(group);
      }
    } catch (const c10::OutOfMemoryError& error) {
      shelf_.fail(std::make_exception_ptr(ResourceError(
          "encoding: got no more memory on {}, want enough for a batch; hint: a smaller --encode-batch-pixels (or "
          "--short-side, --num-video-frames), or --text-encoder-offload",
          device_.str())));
    } catch (...) {
      shelf_.fail(std::current_exception());
    }
  }

  void take(std::uint64_t number, LoadedItem item) {
    if (!item.problem.empty()) {
      shelf_.put(number, {.item = std::move(item), .group = nullptr});
      return;
    }
    const auto sizes = item.rgb_THW3.sizes();
    const std::int64_t frames = sizes[0], height = sizes[1], width = sizes[2];
    waiting_.emplace(number, std::move(item));
    for (const Group& group : grouper_.add(number, frames, height, width)) {
      if (shelf_.is_stopped()) return;
      encode(group);
    }
  }

  void encode(const Group& numbers) {
    std::vector<LoadedItem> items;
    for (const std::uint64_t number : numbers) items.push_back(std::move(waiting_.extract(number).mapped()));
    std::unique_lock<std::mutex> turn;
    if (encoders_.turn) turn = std::unique_lock(*encoders_.turn);
    try {
      const auto group = std::make_shared<const EncodedGroup>(to_cpu(latents_of(items)));
      if (turn && group->copied) group->copied->synchronize();  // the GPU's memory is free for the other
      for (std::size_t i = 0; i < items.size(); ++i) {
        items[i].rgb_THW3 = at::Tensor();
        shelf_.put(numbers[i], {.item = std::move(items[i]), .group = group, .place = static_cast<std::int64_t>(i)});
      }
    } catch (const DataError& error) {
      if (items.size() > 1) return encode_apart(numbers, std::move(items), std::move(turn));
      items[0].problem = error.what();
      items[0].rgb_THW3 = at::Tensor();
      shelf_.put(numbers[0], {.item = std::move(items[0]), .group = nullptr});
    }
  }

  // One of them is at fault: which?
  void encode_apart(const Group& numbers, std::vector<LoadedItem> items, std::unique_lock<std::mutex> turn) {
    if (turn) turn.unlock();
    for (std::size_t i = 0; i < items.size(); ++i) waiting_.emplace(numbers[i], std::move(items[i]));
    for (const std::uint64_t number : numbers) encode({number});
  }

  [[nodiscard]] at::Tensor latents_of(const std::vector<LoadedItem>& items) const {
    const at::Tensor& first = items.front().rgb_THW3;
    if (items.size() == 1) {
      const at::Tensor rgb_THW3 = first.to(device_, first.scalar_type(), /*non_blocking=*/true);
      return encoders_.tokenizer->encode(rgb_THW3.permute({3, 0, 1, 2})).unsqueeze(0);
    }
    std::vector<std::int64_t> sizes = first.sizes().vec();
    sizes.insert(sizes.begin(), static_cast<std::int64_t>(items.size()));
    const at::Tensor rgb_NTHW3 = at::empty(sizes, first.options().device(device_).pinned_memory(false));
    for (std::size_t i = 0; i < items.size(); ++i) {
      rgb_NTHW3[static_cast<std::int64_t>(i)].copy_(items[i].rgb_THW3, /*non_blocking=*/true);
    }
    return encoders_.tokenizer->encode_batch(rgb_NTHW3.permute({0, 4, 1, 2, 3}));
  }

  // As they will be stored. The copy is under way when this returns.
  [[nodiscard]] EncodedGroup to_cpu(const at::Tensor& latents_NCTHW) const {
    const at::Tensor rounded = latents_NCTHW.to(at::kBFloat16).contiguous();
    if (rounded.is_cpu()) return {.latents_NCTHW = rounded, .copied = std::nullopt};
    EncodedGroup group{
        .latents_NCTHW = at::empty(rounded.sizes(), at::TensorOptions(at::kBFloat16).pinned_memory(true)),
        .copied = std::nullopt};
    group.latents_NCTHW.copy_(rounded, /*non_blocking=*/true);
    const c10::impl::VirtualGuardImpl device(device_.type());
    group.copied.emplace(device_.type());
    group.copied->record(device.getStream(rounded.device()));
    return group;
  }

  Result finish(std::uint64_t number) {
    const c10::InferenceMode inference;
    const c10::DeviceGuard guard(device_);
    at::set_num_threads(1);
    const EncodedItem encoded = shelf_.take(number);
    if (!encoded.item.problem.empty()) return skip(encoded.item, encoded.item.problem);
    if (encoded.group->copied) encoded.group->copied->synchronize();
    const at::Tensor text_LE = texts_.rows(number, encoded.item.description.caption);
    return make_result(encoded.item, encoded.group->latents_NCTHW[encoded.place], text_LE);
  }

  const std::vector<std::uint64_t>& items_;
  const Encoders& encoders_;
  Texts& texts_;
  at::Device device_;
  Grouper grouper_;
  std::map<std::uint64_t, LoadedItem> waiting_;  // for their group; of the encoder thread
  ItemLoader loader_;
  LatentShelf shelf_;
  data::OrderedWork<LoadedItem> loading_;
  data::OrderedWork<Result> finishing_;
  // Last: they use all above.
  data::WorkerThreads<LoadedItem> loaders_;
  data::WorkerThreads<Result> finishers_;
  std::thread encoder_;
};

}  // namespace

bool gains_from_batches(const models::VideoTokenizer& tokenizer, at::Device device) {
  return !device.is_cpu() || tokenizer.gains_from_batches();
}

std::unique_ptr<ResultStream> batched(const data::Source& source, const data::LoadLimits& limits,
                                      const std::vector<std::uint64_t>& items, const Encoders& encoders, Texts& texts,
                                      const StreamOptions& options) {
  return std::make_unique<Batched>(source, limits, items, encoders, texts, options);
}

}  // namespace dfm::prepare
