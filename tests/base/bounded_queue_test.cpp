#include "dfm/base/bounded_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>

namespace dfm {
namespace {

using namespace std::chrono_literals;

TEST(BoundedQueue, KeepsOrderAndDrainsAfterClose) {
  BoundedQueue<std::unique_ptr<int>> queue(3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(queue.push(std::make_unique<int>(i)));
  queue.close();
  EXPECT_FALSE(queue.push(std::make_unique<int>(9)));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(**queue.pop(), i);
  EXPECT_FALSE(queue.pop().has_value());
}

TEST(BoundedQueue, NeverHoldsMoreThanItsCapacity) {
  BoundedQueue<int> queue(2);
  std::atomic<int> pushed = 0;
  std::thread producer([&] {
    for (int i = 0; i < 50; ++i) {
      queue.push(i);
      ++pushed;
    }
    queue.close();
  });
  int taken = 0;
  std::this_thread::sleep_for(20ms);
  EXPECT_LE(pushed, 2);
  while (const std::optional<int> item = queue.pop()) {
    EXPECT_EQ(*item, taken++);
    EXPECT_LE(pushed - taken, 2);  // one push may have ended that the count does not show yet
  }
  producer.join();
  EXPECT_EQ(taken, 50);
}

TEST(BoundedQueue, FailWakesBothSidesWithTheException) {
  BoundedQueue<int> empty(1), full(1);
  full.push(1);
  std::atomic<int> caught = 0;
  const auto expect_failure = [&](auto&& body) {
    try {
      body();
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "first");
      ++caught;
    }
  };
  std::thread consumer([&] { expect_failure([&] { (void)empty.pop(); }); });
  std::thread producer([&] { expect_failure([&] { (void)full.push(2); }); });
  std::this_thread::sleep_for(10ms);
  for (BoundedQueue<int>* queue : {&empty, &full}) {
    queue->fail(std::make_exception_ptr(std::runtime_error("first")));
    queue->fail(std::make_exception_ptr(std::runtime_error("second")));
  }
  consumer.join();
  producer.join();
  EXPECT_EQ(caught, 2);
}

TEST(BoundedQueue, CloseWakesAWaitingProducer) {
  BoundedQueue<int> queue(1);
  queue.push(1);
  bool accepted = true;
  std::thread producer([&] { accepted = queue.push(2); });
  std::this_thread::sleep_for(10ms);
  queue.close();
  producer.join();
  EXPECT_FALSE(accepted);
}

}  // namespace
}  // namespace dfm
