#include "dfm/data/ordered_work.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>

namespace dfm::data {
namespace {

TEST(OrderedWork, GivesResultsInOrderAndNeverRunsFarAhead) {
  OrderedWork<std::uint64_t> work(5, 205, 7);
  std::atomic<std::uint64_t> consumed = 5;
  std::atomic<bool> too_far = false;
  const WorkerThreads<std::uint64_t> threads(3, work, [&](std::uint64_t i) {
    if (i >= consumed + 8) too_far = true;  // one that is being handed out, and 7 ahead
    if (i % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return i * i;
  });
  for (std::uint64_t i = 5; i < 205; ++i) {
    EXPECT_EQ(work.next(), i * i);
    ++consumed;
  }
  EXPECT_FALSE(work.next());
  EXPECT_FALSE(too_far);
}

TEST(OrderedWork, ThrowsAnErrorInItsPlace) {
  OrderedWork<int> work(0, 10, 4);
  const WorkerThreads<int> threads(2, work, [](std::uint64_t i) {
    if (i == 3) throw std::runtime_error("number 3");
    return static_cast<int>(i);
  });
  for (int i = 0; i < 3; ++i) EXPECT_EQ(work.next(), i);
  EXPECT_THROW(work.next(), std::runtime_error);
  EXPECT_EQ(work.next(), 4);
}

TEST(OrderedWork, EndsWithWorkLeft) {
  OrderedWork<int> work(0, OrderedWork<int>::kEndless, 4);
  const WorkerThreads<int> threads(2, work, [](std::uint64_t i) { return static_cast<int>(i); });
  EXPECT_EQ(work.next(), 0);
}  // the destructor must not hang

}  // namespace
}  // namespace dfm::data
