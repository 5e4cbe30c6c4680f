// What the watchdog knows of operations, and how it says it.
#include "comm/operations.h"

#include <gtest/gtest.h>

#include <thread>

namespace dfm::comm {
namespace {

OperationInfo operation(std::uint64_t number, double seconds = 600) {
  return {"data", {0, 2}, number, "all_reduce", {}, seconds};
}

RankState state_of(const std::string& place, std::uint64_t begun) {
  RankState state;
  state.place = place;
  state.begun["data/0, 2"] = begun;
  return state;
}

TEST(RankState, SurvivesItsText) {
  RankState state = state_of("iteration 3,\treading\ndata", 40);
  state.begun["tensor/0, 1"] = 7;
  state.oldest = OperationInfo{"tensor", {0, 1}, 7, "all_gather", {1}, 12};
  const RankState again = RankState::from_text(state.to_text());
  EXPECT_EQ(again.place, "iteration 3, reading data");
  EXPECT_EQ(again.begun, state.begun);
  ASSERT_TRUE(again.oldest.has_value());
  EXPECT_EQ(again.oldest->describe(), "all_gather number 7 of group tensor (ranks 0, 1) with rank 1");
  EXPECT_EQ(again.oldest->seconds, 12);
}

TEST(RankState, TakesNoHarmFromAnyText) {
  for (const char* text : {"", "\n\n", "O\tx", "B\tonly", "P", "O\ta\tx\ty\tz\t,\t-", "\t\t\t"}) {
    EXPECT_TRUE(RankState::from_text(text).begun.empty()) << text;
  }
}

TEST(DescribeStuck, NamesTheRankThatIsBehind) {
  EXPECT_EQ(
      describe_stuck(operation(41),
                     {state_of("iteration 3, backward", 41), std::nullopt, state_of("iteration 3, reading data", 40)},
                     {false, false, false}),
      "all_reduce number 41 of group data (ranks 0, 2): waited 10 min for rank 2, which is at operation 40 "
      "(iteration 3, reading data)");
}

TEST(DescribeStuck, SaysThatARankDoesNotRespond) {
  const std::vector<std::optional<RankState>> states{state_of("a", 41), std::nullopt, state_of("b", 41)};
  EXPECT_EQ(describe_stuck(operation(41, 5), states, {false, false, true}),
            "all_reduce number 41 of group data (ranks 0, 2): waited 5 s for its end, which all of its ranks have "
            "begun; rank 2 does not respond (b)");
}

TEST(DescribeStuck, FollowsTheChainToItsEnd) {
  // 0 waits for 2 in the data group; 2 waits for 3 in its tensor group; 3 computes.
  RankState two = state_of("iteration 3, forward", 40), three = state_of("iteration 3, saving", 0);
  two.oldest = OperationInfo{"tensor", {2, 3}, 9, "all_gather", {}, 300};
  two.begun["tensor/2, 3"] = 9;
  three.begun["tensor/2, 3"] = 8;
  EXPECT_EQ(describe_stuck(operation(41), {state_of("x", 41), std::nullopt, two, three}, {false, false, false, false}),
            "all_reduce number 41 of group data (ranks 0, 2): waited 10 min for rank 2, which is at operation 40 "
            "(iteration 3, forward), in all_gather number 9 of group tensor (ranks 2, 3); rank 2 waits for rank 3, "
            "which is at operation 8 (iteration 3, saving)");
}

TEST(Operations, AgeAndEnd) {
  Operations operations;
  const std::uint64_t first = operations.begin("run", {0, 1}, "leave");
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  const std::uint64_t second = operations.begin("run", {0, 1}, "leave");
  EXPECT_EQ(operations.state().oldest->number, 1u);
  EXPECT_GE(operations.state().oldest->seconds, 0.03);
  operations.end(first);
  EXPECT_EQ(operations.state().oldest->number, 2u);
  bool is_done = false;
  operations.end_when(second, [&] { return is_done; });
  operations.ask_asynchronous();
  EXPECT_TRUE(operations.state().oldest.has_value());
  is_done = true;
  operations.ask_asynchronous();
  EXPECT_FALSE(operations.state().oldest.has_value());
  EXPECT_EQ(operations.state().begun.at("run/0, 1"), 2u);
}

TEST(Operations, ForgiveTheTimeInWhichTheProcessWasStopped) {
  Operations operations;
  operations.begin("run", {0, 1}, "leave");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  operations.forgive(std::chrono::milliseconds(40));
  const double seconds = operations.state().oldest->seconds;
  EXPECT_GE(seconds, 0.01);
  operations.forgive(std::chrono::hours(1));
  EXPECT_LT(operations.state().oldest->seconds, 0.01);
}

}  // namespace
}  // namespace dfm::comm
