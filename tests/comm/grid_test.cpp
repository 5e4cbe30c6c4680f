#include "dfm/comm/grid.h"

#include <gtest/gtest.h>

#include <set>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

std::string error_of(int world, int tensor, int context, int pipeline) {
  try {
    make_grid(world, tensor, context, pipeline);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

using Groups = std::set<std::vector<int>>;

Groups groups_along(const Axes& axes, const GridSizes& sizes) {
  Groups groups;
  for (int rank = 0; rank < sizes.world(); ++rank) groups.insert(ranks_along(rank, axes, sizes));
  return groups;
}

TEST(Grid, CoordinatesAndRanksAreInverse) {
  const GridSizes sizes{.tensor = 2, .context = 3, .data = 4, .pipeline = 5};
  for (int rank = 0; rank < sizes.world(); ++rank) {
    const Coordinates at = coordinates_of(rank, sizes);
    EXPECT_EQ(rank_of(at, sizes), rank);
    EXPECT_TRUE(at.tensor < 2 && at.context < 3 && at.data < 4 && at.pipeline < 5);
  }
  EXPECT_EQ(coordinates_of(6, {.tensor = 2, .context = 2, .data = 2}),
            (Coordinates{.tensor = 0, .context = 1, .data = 1}));
  EXPECT_THROW(static_cast<void>(coordinates_of(120, sizes)), InternalError);
  EXPECT_THROW(static_cast<void>(coordinates_of(-1, sizes)), InternalError);
}

// The groups that Megatron's initialize_model_parallel documents for 16 GPUs with tensor 2 and pipeline 4: tensor
// [g0, g1] ..., data [g0, g2], [g1, g3] ..., pipeline [g0, g4, g8, g12] ...
TEST(Grid, GroupsOfSixteenRanksAreThoseOfMegatron) {
  const GridSizes sizes = make_grid(16, 2, 1, 4);
  EXPECT_EQ(groups_along({.tensor = true}, sizes),
            (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}, {12, 13}, {14, 15}}));
  EXPECT_EQ(groups_along({.data = true}, sizes),
            (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
  EXPECT_EQ(groups_along({.pipeline = true}, sizes),
            (Groups{{0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15}}));
}

// Megatron's order "tp-cp-ep-dp-pp" on 8 ranks with tensor 2 and context 2: context varies before data.
TEST(Grid, GroupsOfEightRanksWithContextAreThoseOfMegatron) {
  const GridSizes sizes = make_grid(8, 2, 2, 1);
  EXPECT_EQ(groups_along({.tensor = true}, sizes), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
  EXPECT_EQ(groups_along({.context = true}, sizes), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
  EXPECT_EQ(groups_along({.data = true}, sizes), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
  EXPECT_EQ(groups_along({.context = true, .data = true}, sizes), (Groups{{0, 2, 4, 6}, {1, 3, 5, 7}}));
  EXPECT_EQ(groups_along({.tensor = true, .context = true, .data = true}, sizes), (Groups{{0, 1, 2, 3, 4, 5, 6, 7}}));
}

TEST(Grid, HeaderExampleHolds) {
  const GridSizes sizes{.tensor = 2, .context = 2, .data = 2};
  EXPECT_EQ(ranks_along(6, {.tensor = true}, sizes), (std::vector{6, 7}));
  EXPECT_EQ(ranks_along(6, {.context = true}, sizes), (std::vector{4, 6}));
  EXPECT_EQ(ranks_along(6, {.data = true}, sizes), (std::vector{2, 6}));
  EXPECT_EQ(ranks_along(6, {.context = true, .data = true}, sizes), (std::vector{0, 2, 4, 6}));
  EXPECT_EQ(ranks_along(6, {}, sizes), (std::vector{6}));
}

TEST(Grid, DataAxisIsWhatIsLeft) {
  EXPECT_EQ(make_grid(16, 2, 2, 2), (GridSizes{.tensor = 2, .context = 2, .data = 2, .pipeline = 2}));
  EXPECT_EQ(make_grid(3, 1, 1, 1), (GridSizes{.data = 3}));
  EXPECT_EQ(make_grid(1, 1, 1, 1), GridSizes{});
}

TEST(Grid, ImpossibleLayoutIsRefusedWithAllNumbersAndTheNearestThatWorks) {
  EXPECT_EQ(error_of(6, 4, 1, 1),
            "layout: got 6 ranks for tensor 4 x context 1 x pipeline 1 = 4, want a multiple of 4; hint: start 8 ranks, "
            "or use model.tensor_model_parallel_size=2 model.context_parallel_size=1 "
            "model.pipeline_model_parallel_size=1 (TP 2 x DP 3) with 6");
  EXPECT_EQ(error_of(2, 2, 2, 1),
            "layout: got 2 ranks for tensor 2 x context 2 x pipeline 1 = 4, want a multiple of 4; hint: start 4 ranks, "
            "or use model.tensor_model_parallel_size=2 model.context_parallel_size=1 "
            "model.pipeline_model_parallel_size=1 (TP 2) with 2");
  EXPECT_NE(error_of(12, 2, 4, 1).find("model.tensor_model_parallel_size=2 model.context_parallel_size=2"),
            std::string::npos);
  EXPECT_NE(error_of(8, 0, 1, 1).find("model.tensor_model_parallel_size: got 0"), std::string::npos);
  EXPECT_NE(error_of(8, 1, -2, 1).find("model.context_parallel_size: got -2"), std::string::npos);
  EXPECT_NE(error_of(8, 65536, 65536, 65536).find("281474976710656"), std::string::npos);
}

// Every layout that an error proposes is one that works.
TEST(Grid, ProposedLayoutsDivideTheWorld) {
  for (int world = 1; world <= 12; ++world) {
    for (int tensor = 1; tensor <= 8; ++tensor) {
      for (int context = 1; context <= 4; ++context) {
        if (world % (tensor * context) == 0) continue;
        const std::string error = error_of(world, tensor, context, 1);
        const auto number_after = [&](const std::string& name) {
          return std::stoi(error.substr(error.find(name + "=") + name.size() + 1));
        };
        EXPECT_NO_THROW(make_grid(world, number_after("model.tensor_model_parallel_size"),
                                  number_after("model.context_parallel_size"),
                                  number_after("model.pipeline_model_parallel_size")))
            << error;
      }
    }
  }
}

TEST(Grid, DescriptionLeavesOutAxesOfOne) {
  EXPECT_EQ(describe({.tensor = 2, .context = 2, .data = 2}), "TP 2 x CP 2 x DP 2");
  EXPECT_EQ(describe({.data = 3}), "DP 3");
  EXPECT_EQ(describe({.pipeline = 2}), "PP 2");
  EXPECT_EQ(describe({}), "1 rank");
}

}  // namespace
}  // namespace dfm::comm
