#include "parallel/bucket_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace dfm::parallel {
namespace {

using Members = std::vector<std::size_t>;

TEST(BucketPlan, TakesLaterStagesFirstAndClosesAtTheSize) {
  const std::vector<PlannedParameter> parameters = {{100, 0, false}, {50, 0, false}, {70, 1, false},
                                                    {30, 1, false},  {10, 2, false}, {500, 3, false}};
  const std::vector<BucketPlan> buckets = plan_buckets(parameters, {}, {.bucket_size = 100, .num_parts = 2});
  ASSERT_EQ(buckets.size(), 4U);
  EXPECT_EQ(buckets[0].members, (Members{5}));
  EXPECT_EQ(buckets[1].members, (Members{4, 2, 3}));
  EXPECT_EQ(buckets[2].members, (Members{0}));
  EXPECT_EQ(buckets[3].members, (Members{1})) << "what is left";
  EXPECT_EQ(buckets[1].first_stage, 1);
  EXPECT_EQ(buckets[1].last_stage, 2);
}

TEST(BucketPlan, AlignsParametersAndPartsAndLeavesNothingOut) {
  std::vector<PlannedParameter> parameters;
  for (std::int64_t i = 0; i < 40; ++i) parameters.push_back({1 + i * 37 % 211, static_cast<int>(i / 5), i % 3 == 0});
  for (const int num_parts : {1, 2, 3, 8}) {
    std::vector<bool> is_planned(parameters.size());
    for (const BucketPlan& bucket : plan_buckets(parameters, {.bucket_size = 300, .num_parts = num_parts},
                                                 {.bucket_size = 200, .num_parts = 2 * num_parts})) {
      EXPECT_EQ(bucket.num_parts, bucket.is_split ? num_parts : 2 * num_parts);
      EXPECT_EQ(bucket.size % (bucket.num_parts * kAlignment), 0);
      std::int64_t end = 0;
      for (std::size_t i = 0; i < bucket.members.size(); ++i) {
        const PlannedParameter& parameter = parameters[bucket.members[i]];
        EXPECT_EQ(parameter.is_split, bucket.is_split);
        EXPECT_EQ(bucket.ranges[i].size(), parameter.numel);
        EXPECT_EQ(bucket.ranges[i].begin % kAlignment, 0);
        EXPECT_GE(bucket.ranges[i].begin, end);
        end = bucket.ranges[i].end;
        EXPECT_FALSE(is_planned[bucket.members[i]]);
        is_planned[bucket.members[i]] = true;
      }
      EXPECT_LE(end, bucket.size);
    }
    EXPECT_EQ(std::count(is_planned.begin(), is_planned.end(), true), 40);
  }
}

// The order of launches is the order in which backward completes buckets, whichever kind they are.
TEST(BucketPlan, OrdersBothKindsByTheirLastParameter) {
  const std::vector<PlannedParameter> parameters = {
      {10, 0, false}, {10, 1, true}, {10, 1, false}, {10, 2, true}, {10, 2, false}};
  const std::vector<BucketPlan> buckets = plan_buckets(parameters, {.bucket_size = 20}, {.bucket_size = 1000});
  ASSERT_EQ(buckets.size(), 2U);
  EXPECT_EQ(buckets[0].members, (Members{3, 1}));
  EXPECT_EQ(buckets[1].members, (Members{4, 2, 0}));
  const std::vector<BucketPlan> open = plan_buckets(parameters, {.bucket_size = 1000}, {.bucket_size = 1000});
  EXPECT_TRUE(open[0].is_split);
  EXPECT_FALSE(open[1].is_split) << "ends with the first stage";
}

TEST(BucketPlan, PiecesCoverTheWholeOnce) {
  const std::vector<int> replicas = {8, 9, 10, 11, 12, 13};  // 2 tensor ranks, 3 data ranks
  for (const int split_dim : {-1, 0, 1}) {
    const Parameter parameter{
        .name = "weight", .tensor = {}, .shape = {6, 50}, .split_dim = split_dim, .is_partial = false, .stage = 0};
    const int num_parts = split_dim < 0 ? 6 : 3;
    const std::int64_t numel = split_dim < 0 ? 300 : 150;
    const std::vector<BucketPlan> buckets =
        plan_buckets({{40, 0, true}, {numel, 0, true}}, {.bucket_size = 1000, .num_parts = num_parts}, {});
    ASSERT_EQ(buckets.size(), 1U);
    std::vector<int> holder(300, -1);
    for (const comm::Piece& piece : pieces_of(parameter, buckets[0], buckets[0].ranges[1], replicas, 2)) {
      comm::for_each_run(parameter.shape, piece.slice, [&](std::int64_t whole, std::int64_t, std::int64_t count) {
        for (std::int64_t i = whole; i < whole + count; ++i) {
          EXPECT_EQ(holder[static_cast<std::size_t>(i)], -1);
          holder[static_cast<std::size_t>(i)] = piece.rank;
        }
      });
    }
    EXPECT_EQ(std::count(holder.begin(), holder.end(), -1), 0) << "split along " << split_dim;
    // Element (row 5, column 49) is the last of the second tensor rank's slice where there is one.
    EXPECT_EQ(holder[299], split_dim < 0 ? 13 : 11);
    // Column 25 of row 0: in the second of six parts, in the first rows, the first of the second half of the columns.
    EXPECT_EQ(holder[25], split_dim == 0 ? 8 : 9);
  }
}

}  // namespace
}  // namespace dfm::parallel
