#pragma once
// Numbered work for threads whose results are taken in order: any thread takes the next number, results wait for their
// turn, and no thread runs more than `window` numbers ahead of the consumer, so memory is bounded however uneven the
// work is (with one queue a stage, a slow item would pass its place in the order or stall a whole stage).
//
//   OrderedWork<Result> work(first, end, window);
//   WorkerThreads threads(num_threads, work, [](std::uint64_t number) { return make_result(number); });
//   while (std::optional<Result> result = work.next()) use(*result);
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

namespace dfm::data {

template <typename Result>
class OrderedWork {
 public:
  static constexpr std::uint64_t kEndless = ~std::uint64_t{0};

  OrderedWork(std::uint64_t first, std::uint64_t end, std::uint64_t window)
      : next_taken_(first), next_given_(first), end_(end), window_(window) {}

  // The next number to work on; blocks while that would be too far ahead. Nothing: no more work.
  std::optional<std::uint64_t> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || next_taken_ >= end_ || next_taken_ < next_given_ + window_; });
    if (stopped_ || next_taken_ >= end_) return std::nullopt;
    return next_taken_++;
  }

  void give(std::uint64_t number, std::variant<Result, std::exception_ptr> result) {
    const std::lock_guard lock(mutex_);
    results_.emplace(number, std::move(result));
    changed_.notify_all();
  }

  // The result of the next number in order, or the exception that its work threw; nothing after the last, or after the
  // last that was taken when stop() was called.
  std::optional<Result> next() {
    std::unique_lock lock(mutex_);
    if (next_given_ >= end_) return std::nullopt;
    changed_.wait(lock, [&] { return results_.contains(next_given_) || (stopped_ && next_given_ >= next_taken_); });
    if (!results_.contains(next_given_)) return std::nullopt;
    auto node = results_.extract(next_given_);
    ++next_given_;
    changed_.notify_all();
    lock.unlock();
    if (auto* error = std::get_if<std::exception_ptr>(&node.mapped())) std::rethrow_exception(*error);
    return std::move(std::get<Result>(node.mapped()));
  }

  // Results that wait to be taken in order now.
  [[nodiscard]] std::size_t num_ready() const {
    const std::lock_guard lock(mutex_);
    return results_.size();
  }

  // Hands out no more numbers.
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, std::variant<Result, std::exception_ptr>> results_;
  std::uint64_t next_taken_, next_given_;
  const std::uint64_t end_, window_;
  bool stopped_ = false;
};

// Threads that work on `work` until there is no more; the destructor stops and joins them. Declare it after what
// `make_result` uses.
template <typename Result>
class WorkerThreads {
 public:
  WorkerThreads(std::int64_t num_threads, OrderedWork<Result>& work, std::function<Result(std::uint64_t)> make_result)
      : work_(work), make_result_(std::move(make_result)) {
    for (std::int64_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
  }
  ~WorkerThreads() {
    work_.stop();
    for (std::thread& thread : threads_) thread.join();
  }
  WorkerThreads(const WorkerThreads&) = delete;
  WorkerThreads& operator=(const WorkerThreads&) = delete;

 private:
  void run() {
    while (const std::optional<std::uint64_t> number = work_.take()) {
      try {
        work_.give(*number, make_result_(*number));
      } catch (...) {
        work_.give(*number, std::current_exception());
      }
    }
  }

  OrderedWork<Result>& work_;
  std::function<Result(std::uint64_t)> make_result_;
  std::vector<std::thread> threads_;
};

}  // namespace dfm::data
