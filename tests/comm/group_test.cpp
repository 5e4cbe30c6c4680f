#include "dfm/comm/group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "comm/group_checks.h"
#include "dfm/base/error.h"
#include "support/ranks.h"

namespace dfm::comm {
namespace {

using test::input_of;
using test::launch_ranks;
using test::ordered_sum;
using test::run_ranks;

RANK_CASE(every_operation) {
  Group& all = *world.all();
  test::check_every_operation(all, {});
  for (int i = 0; i < 300; ++i) all.barrier();
}

// Two groups a rank, whose operations take turns in an order that differs between the pairs.
RANK_CASE(crossed_groups) {
  const int me = world.rank(), tensor_first = me / 2 * 2, data_first = me % 2;
  const GroupPtr tensor = world.group("tensor", {tensor_first, tensor_first + 1});
  const GroupPtr data = world.group("data", {data_first, data_first + 2});
  EXPECT_EQ(tensor->rank(), me % 2);
  EXPECT_EQ(data->rank(), me / 2);
  EXPECT_EQ(data->ranks(), (std::vector{data_first, data_first + 2}));
  EXPECT_EQ(data->name(), "data");
  for (int round = 0; round < 40; ++round) {
    const std::int64_t numel = round % 5 == 0 ? 200001 : 64 + round;
    const at::Tensor x = input_of(me, numel, at::kFloat, round);
    tensor->all_reduce(x).wait();
    const auto row_sum = [&](int first) {
      return input_of(first, numel, at::kFloat, round) + input_of(first + 1, numel, at::kFloat, round);
    };
    EXPECT_TRUE(at::equal(x, row_sum(tensor_first)));
    const at::Tensor received = at::empty_like(x);
    const int other = 1 - data->rank();
    data->exchange({{other, x}}, {{other, received}}).wait();
    data->all_reduce(x).wait();
    EXPECT_TRUE(at::equal(x, row_sum(0) + row_sum(2)));
    EXPECT_TRUE(at::equal(received, row_sum(tensor_first == 0 ? 2 : 0)));
  }
  EXPECT_TRUE(world.group("mine", {me})->is_alone());
}

RANK_CASE(eight_ranks) {
  Group& all = *world.all();
  test::check_exchange_of_all(all, {});
  for (const std::int64_t numel : {1, 20011, 150001}) {
    const at::Tensor x = input_of(all.rank(), numel, at::kFloat, 3);
    all.all_reduce(x).wait();
    EXPECT_TRUE(at::equal(x, ordered_sum(all.size(), [&](int r) { return input_of(r, numel, at::kFloat, 3); })));
  }
  for (int i = 0; i < 200; ++i) all.barrier();
}

RANK_CASE(different_operations) {
  const at::Tensor x = at::zeros({8}), y = at::zeros({16});
  if (world.rank() == 0) {
    world.all()->all_reduce(x).wait();
  } else {
    world.all()->all_gather(y, x).wait();
  }
}

RANK_CASE(different_message_sizes) {
  if (world.rank() == 0) {
    world.all()->exchange({{1, at::zeros({8})}}, {}).wait();
    world.all()->barrier();
  } else {
    world.all()->exchange({}, {{0, at::zeros({9})}}).wait();
  }
}

RANK_CASE(impossible_arguments) {
  Group& all = *world.all();
  EXPECT_THROW(all.all_reduce(at::zeros({4, 4}).t().narrow(0, 0, 2)), InternalError);
  EXPECT_THROW(all.all_gather(at::zeros({9}), at::zeros({4})), InternalError);
  EXPECT_THROW(all.all_gather(at::zeros({8}), at::zeros({4}, at::kDouble)), InternalError);
  EXPECT_THROW(all.reduce_scatter(at::zeros({4}), at::zeros({4})), InternalError);
  EXPECT_THROW(all.all_to_all(at::zeros({3}), at::zeros({3})), InternalError);
  EXPECT_THROW(all.broadcast(at::zeros({3}), 2), InternalError);
  EXPECT_THROW(all.exchange({{all.rank(), at::zeros({3})}}, {}), InternalError);
  EXPECT_THROW(all.all_reduce(at::zeros({3}, at::kByte)), InternalError);
  all.barrier();  // still in step
}

TEST(ShmGroup, EveryOperationOfTwoRanksGivesTheOrderedResult) { run_ranks(2, "every_operation"); }
TEST(ShmGroup, EveryOperationOfThreeRanksGivesTheOrderedResult) { run_ranks(3, "every_operation"); }
TEST(ShmGroup, EveryOperationOfFourRanksGivesTheOrderedResult) { run_ranks(4, "every_operation"); }
TEST(ShmGroup, EightRanksOnFewCoresGetThrough) { run_ranks(8, "eight_ranks"); }
TEST(ShmGroup, CrossedGroupsDoNotMix) { run_ranks(4, "crossed_groups"); }
TEST(ShmGroup, ImpossibleArgumentsAreRefusedBeforeAnybodyWaits) { run_ranks(2, "impossible_arguments"); }

TEST(ShmGroup, DifferentOperationsOnTwoRanksAreAnError) {
  std::string output;
  for (const test::RankResult& result : launch_ranks(2, "different_operations")) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kInternal));
    output += result.output;
  }
  EXPECT_NE(output.find("calls all_reduce of 32 bytes"), std::string::npos) << output;
  EXPECT_NE(output.find("calls all_gather of 32 bytes"), std::string::npos) << output;
}

TEST(ShmGroup, MessageOfAnotherSizeThanExpectedIsAnError) {
  std::string output;
  for (const test::RankResult& result : launch_ranks(2, "different_message_sizes")) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kComm));
    output += result.output;
  }
  EXPECT_NE(output.find("got a message of 32 bytes from rank 0 of the group, want 36"), std::string::npos) << output;
}

TEST(AloneGroup, OperationsAreCopiesOrNothing) {
  const GroupPtr group = alone(3);
  EXPECT_TRUE(group->is_alone());
  EXPECT_EQ(group->ranks(), (std::vector{3}));
  EXPECT_EQ(group->rank(), 0);
  const at::Tensor x = at::rand({2, 5}), before = x.clone();
  group->all_reduce(x).wait();
  group->all_reduce(x, Reduce::kMax).wait();
  group->broadcast(x, 0).wait();
  group->exchange({}, {}).wait();
  group->barrier();
  EXPECT_TRUE(at::equal(x, before));
  const at::Tensor a = at::zeros({10}), b = at::zeros({10}), c = at::zeros({2, 5});
  group->all_gather(a, x).wait();
  group->reduce_scatter(b, x).wait();
  group->all_to_all(c, x).wait();
  group->all_gather(a, a).wait();
  EXPECT_TRUE(at::equal(a, x.view(-1)));
  EXPECT_TRUE(at::equal(b, x.view(-1)));
  EXPECT_TRUE(at::equal(c, x));
  EXPECT_THROW(group->exchange({{0, x}}, {{0, x}}), InternalError);
}

}  // namespace
}  // namespace dfm::comm
