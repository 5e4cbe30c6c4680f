#pragma once
// Bytes that items under way may hold together, so that memory is bounded however large clips are. Work is numbered in
// the order in which it is needed; the lowest number under way never waits, so that all is done in the end.
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>

namespace dfm::prepare {

class MemoryBudget {
 public:
  explicit MemoryBudget(std::uint64_t bytes) : limit_(bytes) {}

  // Blocks until there is room.
  void acquire(std::uint64_t number, std::uint64_t bytes) {
    std::unique_lock lock(mutex_);
    waiting_.insert(number);
    changed_.wait(lock, [&] {
      const bool is_lowest = number == *waiting_.begin() && (held_.empty() || number < held_.begin()->first);
      return is_stopped_ || is_lowest || used_ + bytes <= limit_;
    });
    waiting_.erase(number);
    used_ += bytes;
    held_[number] = bytes;
    changed_.notify_all();
  }

  // Nothing where the number holds nothing.
  void release(std::uint64_t number) {
    const std::lock_guard lock(mutex_);
    const auto found = held_.find(number);
    if (found == held_.end()) return;
    used_ -= found->second;
    held_.erase(found);
    changed_.notify_all();
  }

  // Nobody waits any more.
  void stop() {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
    changed_.notify_all();
  }

  [[nodiscard]] std::uint64_t used() const {
    const std::lock_guard lock(mutex_);
    return used_;
  }

 private:
  const std::uint64_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, std::uint64_t> held_;
  std::set<std::uint64_t> waiting_;
  std::uint64_t used_ = 0;
  bool is_stopped_ = false;
};

}  // namespace dfm::prepare
