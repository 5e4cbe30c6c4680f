#include "parallel/thread_ranks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "dfm/base/error.h"

namespace dfm::parallel::test {
namespace {

// What the members of one group share.
struct Meeting {
  explicit Meeting(std::size_t size) : tensors(size) {}

  void wait_for_all(const std::string& name) {
    std::unique_lock lock(mutex);
    const long now = generation;
    if (++num_arrived == tensors.size()) {
      num_arrived = 0;
      ++generation;
      changed.notify_all();
    } else if (!changed.wait_for(lock, std::chrono::seconds(30), [&] { return generation != now; })) {
      throw CommError("group {}: got {} of {} ranks after 30 s", name, num_arrived, tensors.size());
    }
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<at::Tensor> tensors;
  std::size_t num_arrived = 0;
  long generation = 0;
};

class ThreadGroup final : public comm::Group {
 public:
  ThreadGroup(std::string name, std::vector<int> ranks, int rank, std::shared_ptr<Meeting> meeting)
      : Group(std::move(name), std::move(ranks), rank), meeting_(std::move(meeting)) {}

  comm::Work all_reduce(const at::Tensor& x, comm::Reduce op) override {
    return meet(x, x, [&] {
      at::Tensor result = meeting_->tensors[0].clone();
      for (std::size_t i = 1; i < meeting_->tensors.size(); ++i) {
        const at::Tensor& other = meeting_->tensors[i];
        result = op == comm::Reduce::kSum ? result.add(other) : at::maximum(result, other);
      }
      return result;
    });
  }
  comm::Work all_gather(const at::Tensor& out, const at::Tensor& in) override {
    return meet(out, in, [&] { return at::cat(meeting_->tensors); });
  }
  comm::Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override {
    return meet(out, in, [&] {
      at::Tensor result = at::zeros_like(out);
      for (const at::Tensor& tensor : meeting_->tensors) result += tensor.narrow(0, rank() * out.numel(), out.numel());
      return result;
    });
  }
  comm::Work all_to_all(const at::Tensor& out, const at::Tensor& in) override {
    return meet(out, in, [&] {
      std::vector<at::Tensor> parts;
      for (const at::Tensor& tensor : meeting_->tensors)
        parts.push_back(tensor.chunk(size())[static_cast<std::size_t>(rank())]);
      return at::cat(parts);
    });
  }
  comm::Work broadcast(const at::Tensor& x, int root) override {
    return meet(x, x, [&] { return meeting_->tensors[static_cast<std::size_t>(root)].clone(); });
  }
  comm::Work exchange(const std::vector<comm::Transfer>&, const std::vector<comm::Transfer>&) override {
    throw InternalError("exchange: not an operation of these tests");
  }
  void barrier() override { meeting_->wait_for_all(name()); }

 private:
  template <typename Result>
  comm::Work meet(const at::Tensor& out, const at::Tensor& in, Result result) {
    const at::NoGradGuard no_grad;
    meeting_->tensors[static_cast<std::size_t>(rank())] = in;
    barrier();
    const at::Tensor value = result();
    barrier();  // everybody has read
    at::Tensor(out).copy_(value);
    return {};
  }

  std::shared_ptr<Meeting> meeting_;
};

}  // namespace

void run_threads(int num_ranks, const std::function<void(int rank, const MakeGroup& make_group)>& body) {
  std::mutex mutex;
  std::map<std::pair<std::string, std::vector<int>>, std::shared_ptr<Meeting>> meetings;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const MakeGroup make_group = [&](const std::string& name, const std::vector<int>& ranks) -> comm::GroupPtr {
        if (ranks.size() == 1) return comm::alone(rank);
        const std::lock_guard lock(mutex);
        std::shared_ptr<Meeting>& meeting = meetings[{name, ranks}];
        if (!meeting) meeting = std::make_shared<Meeting>(ranks.size());
        const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
        return std::make_shared<ThreadGroup>(name, ranks, static_cast<int>(place), meeting);
      };
      try {
        body(rank, make_group);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << rank << ": " << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace dfm::parallel::test
