#pragma once
// Encoded items between the thread that encodes and those that finish samples: put in any order, taken by number.
#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "prepare/encoders.h"
#include "prepare/texts.h"

namespace dfm::prepare {

// The latents of a group on their way to the CPU.
struct EncodedGroup {
  at::Tensor latents_NCTHW;          // on the CPU
  std::optional<c10::Event> copied;  // set when they are there; none: they are
};

struct EncodedItem {
  LoadedItem item;  // without pixels
  std::shared_ptr<const EncodedGroup> group;
  std::int64_t place = 0;  // in the group
};

class LatentShelf {
 public:
  explicit LatentShelf(std::uint64_t most_bytes) : most_bytes_(most_bytes) {}

  void put(std::uint64_t number, EncodedItem encoded) {
    const std::lock_guard lock(mutex_);
    num_bytes_ += bytes_of(encoded);
    items_.emplace(number, std::move(encoded));
    changed_.notify_all();
  }

  // Blocks until it is there. Throws what fail() was given, or Stopped.
  EncodedItem take(std::uint64_t number) {
    std::unique_lock lock(mutex_);
    if (!items_.contains(number)) {
      ++num_waiting_;
      changed_.notify_all();
      changed_.wait(lock, [&] { return items_.contains(number) || error_ || is_stopped_; });
      --num_waiting_;
    }
    if (is_stopped_) throw Stopped();
    auto node = items_.extract(number);
    if (node.empty()) std::rethrow_exception(error_);
    num_bytes_ -= bytes_of(node.mapped());
    changed_.notify_all();
    return std::move(node.mapped());
  }

  // Blocks while the shelf is full and nobody waits for what is not on it: that may be among what comes next.
  void wait_for_room() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_bytes_ <= most_bytes_ || num_waiting_ > 0 || is_stopped_; });
  }

  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    changed_.notify_all();
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
    changed_.notify_all();
  }

  [[nodiscard]] bool is_stopped() const {
    const std::lock_guard lock(mutex_);
    return is_stopped_;
  }

 private:
  static std::uint64_t bytes_of(const EncodedItem& encoded) {
    constexpr std::uint64_t kOverhead = 4096;  // of what else an item holds
    return kOverhead + (encoded.group ? encoded.group->latents_NCTHW.nbytes() /
                                            static_cast<std::uint64_t>(encoded.group->latents_NCTHW.size(0))
                                      : 0);
  }

  const std::uint64_t most_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, EncodedItem> items_;
  std::uint64_t num_bytes_ = 0;
  int num_waiting_ = 0;
  bool is_stopped_ = false;
  std::exception_ptr error_;
};

}  // namespace dfm::prepare
