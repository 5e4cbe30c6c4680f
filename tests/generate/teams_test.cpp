#include "generate/teams.h"

#include <gtest/gtest.h>

#include "support/errors.h"

namespace dfm::generate {
namespace {

using Ranks = std::vector<int>;

struct Case {
  std::int64_t cp_size = 1;
  GuidanceParallel guidance_parallel = GuidanceParallel::kAuto;
  double guidance = 7;
};

Teams teams_of(int num_ranks, std::size_t num_prompts, const Case& wanted = {}) {
  GenerateOptions options;
  options.cp_size = wanted.cp_size;
  options.guidance_parallel = wanted.guidance_parallel;
  options.guidance = wanted.guidance;
  return {options, num_ranks, num_prompts};
}

TEST(Teams, ATwoRankCallForOnePromptSplitsItsGuidance) {
  const Teams teams = teams_of(2, 1);
  EXPECT_EQ(teams.list(), (std::vector<Team>{{0, 2}}));
  EXPECT_EQ(teams.num_spare_ranks(), 0);
  for (int rank : {0, 1}) {
    const Place place = teams.place_of(rank);
    EXPECT_EQ(place.team, 0);
    EXPECT_EQ(place.context_ranks, Ranks{rank});
    EXPECT_EQ(place.branch_ranks, (Ranks{0, 1}));
  }
}

TEST(Teams, PairsGroupsOnlyAsFarAsThereAreTooFewPrompts) {
  EXPECT_EQ(teams_of(4, 1).list(), (std::vector<Team>{{0, 2}}));
  EXPECT_EQ(teams_of(4, 1).num_spare_ranks(), 2);
  EXPECT_EQ(teams_of(4, 1).place_of(3).team, -1);
  EXPECT_EQ(teams_of(4, 2).list(), (std::vector<Team>{{0, 2}, {2, 2}}));
  EXPECT_EQ(teams_of(4, 3).list(), (std::vector<Team>{{0, 2}, {2, 1}, {3, 1}}));
  EXPECT_EQ(teams_of(4, 4).list(), (std::vector<Team>{{0, 1}, {1, 1}, {2, 1}, {3, 1}}));
  EXPECT_EQ(teams_of(2, 3).list(), (std::vector<Team>{{0, 1}, {1, 1}}));
  EXPECT_EQ(teams_of(2, 3).num_rounds(), 2U);
}

TEST(Teams, GroupsAreConsecutiveRanksAndPeersStandAtTheSamePlaceOfTheirs) {
  const Teams teams = teams_of(8, 3, {.cp_size = 2});
  EXPECT_EQ(teams.list(), (std::vector<Team>{{0, 2}, {4, 1}, {6, 1}}));
  const Place place = teams.place_of(3);
  EXPECT_EQ(place.team, 0);
  EXPECT_EQ(place.context_ranks, (Ranks{2, 3}));
  EXPECT_EQ(place.branch_ranks, (Ranks{1, 3}));
  EXPECT_EQ(teams.place_of(7).context_ranks, (Ranks{6, 7}));
  EXPECT_EQ(teams.place_of(7).branch_ranks, (Ranks{7}));
}

TEST(Teams, GuidanceInParallelCanBeForcedAndForbidden) {
  EXPECT_EQ(teams_of(2, 1, {.guidance_parallel = GuidanceParallel::kOff}).list(), (std::vector<Team>{{0, 1}}));
  EXPECT_EQ(teams_of(4, 5, {.guidance_parallel = GuidanceParallel::kOn}).list(), (std::vector<Team>{{0, 2}, {2, 2}}));
  EXPECT_EQ(teams_of(4, 5, {.guidance_parallel = GuidanceParallel::kOn}).num_rounds(), 3U);
  EXPECT_EQ(teams_of(4, 1, {.guidance_parallel = GuidanceParallel::kOn}).list(), (std::vector<Team>{{0, 2}}));
  EXPECT_EQ(teams_of(2, 1, {.guidance = 0}).list(), (std::vector<Team>{{0, 1}}));
  EXPECT_EQ(teams_of(2, 1, {.guidance = 0}).num_spare_ranks(), 1);
}

TEST(Teams, RefusesRanksThatDoNotFormGroups) {
  EXPECT_EQ(test::error_of([] { teams_of(3, 1, {.cp_size = 2}); }),
            "2 cp_size: got 2 for 3 ranks, want a divisor of 3; hint: 1 or 3");
  EXPECT_EQ(test::error_of([] { teams_of(1, 1, {.cp_size = 2}); }),
            "2 cp_size: got 2 for 1 rank, want a divisor of 1; hint: 1");
  EXPECT_EQ(test::error_of([] { teams_of(12, 1, {.cp_size = 24}); }),
            "2 cp_size: got 24 for 12 ranks, want a divisor of 12; hint: 1, 2, 3, 4, 6 or 12");
  EXPECT_EQ(test::error_of([] { teams_of(6, 1, {.cp_size = 2, .guidance_parallel = GuidanceParallel::kOn}); }),
            "2 guidance_parallel: got on with 3 groups of 2 ranks, want an even number of groups; hint: "
            "--guidance-parallel auto, or twice the ranks");
}

}  // namespace
}  // namespace dfm::generate
