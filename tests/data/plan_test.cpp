#include "dfm/data/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "dfm/base/philox.h"
#include "support/errors.h"

namespace dfm::data {
namespace {

std::vector<std::int64_t> random_lengths(std::uint64_t seed, std::size_t count, std::int64_t longest) {
  std::vector<std::int64_t> lengths(count);
  for (std::size_t i = 0; i < count; ++i) {
    const float u = philox_uniform(seed, i, 0, Purpose::kOrder);
    lengths[i] = 1 + static_cast<std::int64_t>(u * u * static_cast<float>(longest - 1));
  }
  return lengths;
}

// Computed by an independent implementation of the cipher: a change of these numbers reorders every run.
TEST(SampleOrder, HasPinnedValues) {
  const auto order = [](std::uint64_t seed, std::uint64_t epoch, std::uint64_t n, std::uint64_t count) {
    std::vector<std::uint64_t> values;
    for (std::uint64_t i = 0; i < count; ++i) values.push_back(sample_at(seed, epoch * n + i, n));
    return values;
  };
  using Values = std::vector<std::uint64_t>;
  EXPECT_EQ(order(1234, 0, 10, 10), (Values{8, 0, 1, 6, 5, 3, 9, 7, 4, 2}));
  EXPECT_EQ(order(1234, 1, 10, 10), (Values{5, 9, 7, 1, 2, 8, 6, 0, 4, 3}));
  EXPECT_EQ(order(7, 5, 1000, 8), (Values{77, 63, 758, 514, 625, 623, 525, 617}));
  EXPECT_EQ(order((std::uint64_t{1} << 40) + 5, (std::uint64_t{1} << 33) + 1, 26, 6), (Values{19, 11, 10, 16, 14, 1}));
}

TEST(SampleOrder, IsAFreshPermutationEachEpoch) {
  for (const std::uint64_t n : {1, 2, 3, 17, 1000}) {
    std::vector<std::uint64_t> previous;
    for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<std::uint64_t> values;
      for (std::uint64_t i = 0; i < n; ++i) values.push_back(sample_at(99, epoch * n + i, n));
      if (n >= 17) {
        EXPECT_NE(values, previous);
      }
      previous = values;
      EXPECT_EQ(std::set<std::uint64_t>(values.begin(), values.end()).size(), n);
      EXPECT_LT(*std::max_element(values.begin(), values.end()), n);
    }
  }
}

TEST(PackRows, KeepsEverySampleOnceWithinTheLimits) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const PackLimits limits{.max_tokens = 1000 + static_cast<std::int64_t>(seed) * 37,
                            .max_samples = static_cast<std::int64_t>(seed % 4) * 3,
                            .token_multiple = 64};
    const std::vector<std::int64_t> lengths = random_lengths(seed, 200, limits.max_tokens);
    const std::vector<std::int64_t> allowed = row_lengths(limits);
    std::vector<int> seen(lengths.size(), 0);
    for (const Row& row : pack_rows(lengths, limits)) {
      std::int64_t sum = 0;
      for (std::size_t i = 0; i < row.members.size(); ++i) {
        const auto member = static_cast<std::size_t>(row.members[i]);
        ++seen[member];
        sum += lengths[member];
        if (i > 0) {
          EXPECT_LE(lengths[member], lengths[static_cast<std::size_t>(row.members[i - 1])]);
        }
      }
      EXPECT_EQ(sum, row.num_tokens);
      EXPECT_LE(sum, limits.max_tokens);
      EXPECT_LE(sum, row.padded_tokens);
      EXPECT_TRUE(std::binary_search(allowed.begin(), allowed.end(), row.padded_tokens));
      if (limits.max_samples > 0) {
        EXPECT_LE(static_cast<std::int64_t>(row.members.size()), limits.max_samples);
      }
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::ptrdiff_t>(seen.size()));
  }
}

TEST(PackRows, IsAPureFunctionWithStableTies) {
  const std::vector<std::int64_t> lengths = {4, 6, 4, 6, 4};
  const PackLimits limits{.max_tokens = 10, .token_multiple = 2};
  const std::vector<Row> rows = pack_rows(lengths, limits);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].members, (std::vector<std::int64_t>{1, 0}));
  EXPECT_EQ(rows[1].members, (std::vector<std::int64_t>{3, 2}));
  EXPECT_EQ(rows[2].members, (std::vector<std::int64_t>{4}));
  EXPECT_EQ(rows[2].padded_tokens, 4);
}

TEST(PackRows, FillsRowsNearlyWhole) {
  const std::vector<std::int64_t> lengths = random_lengths(5, 500, 1000);
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  const std::vector<Row> rows = pack_rows(lengths, {.max_tokens = 1000, .token_multiple = 128});
  EXPECT_LE(static_cast<std::int64_t>(rows.size()), (total + 999) / 1000 * 11 / 9 + 1);  // the bound of the method
}

TEST(PackRows, RefusesWhatFitsNoRow) {
  EXPECT_DFM_ERROR(ExitCode::kData, "got 11 tokens, want 1 to 10", pack_rows({3, 11}, {.max_tokens = 10}));
  EXPECT_TRUE(pack_rows({}, {}).empty());
}

using Dealt = std::vector<std::vector<std::int64_t>>;

std::vector<double> costs_of(const std::vector<std::int64_t>& lengths, const PackCost& cost) {
  std::vector<double> costs;
  for (const std::int64_t length : lengths) {
    const auto tokens = static_cast<double>(length);
    costs.push_back(cost.per_token * tokens + cost.per_pair * tokens * tokens);
  }
  return costs;
}

double busiest(const Dealt& dealt, const std::vector<double>& costs) {
  double most = 0;
  for (const std::vector<std::int64_t>& items : dealt) {
    double sum = 0;
    for (const std::int64_t i : items) sum += costs[static_cast<std::size_t>(i)];
    most = std::max(most, sum);
  }
  return most;
}

// The least that the busiest rank can have, by trying every way.
double best_dealing(const std::vector<double>& costs, std::size_t num_ranks) {
  std::size_t num_ways = 1;
  for (std::size_t i = 0; i < costs.size(); ++i) num_ways *= num_ranks;
  double best = std::numeric_limits<double>::infinity();
  for (std::size_t way = 0; way < num_ways; ++way) {
    std::vector<double> loads(num_ranks, 0);
    std::size_t rest = way;
    for (const double cost : costs) {
      loads[rest % num_ranks] += cost;
      rest /= num_ranks;
    }
    best = std::min(best, *std::max_element(loads.begin(), loads.end()));
  }
  return best;
}

TEST(DealByCost, GivesEachItemToOneRankAscending) {
  for (const std::size_t count : {0, 1, 2, 7, 100}) {
    for (const std::int64_t num_ranks : {1, 2, 3, 8}) {
      const std::vector<double> costs = costs_of(random_lengths(count, count, 500), {});
      const Dealt dealt = deal_by_cost(costs, num_ranks);
      ASSERT_EQ(dealt.size(), static_cast<std::size_t>(num_ranks));
      std::vector<std::int64_t> all;
      for (const auto& items : dealt) {
        EXPECT_TRUE(std::is_sorted(items.begin(), items.end()));
        all.insert(all.end(), items.begin(), items.end());
        if (count >= static_cast<std::size_t>(num_ranks)) {
          EXPECT_FALSE(items.empty());
        }
      }
      std::sort(all.begin(), all.end());
      std::vector<std::int64_t> want(count);
      std::iota(want.begin(), want.end(), 0);
      EXPECT_EQ(all, want);
    }
  }
}

TEST(DealByCost, IsWithinTheBoundOfTheBestDealing) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const std::size_t num_ranks = 2 + seed % 3;
    const std::vector<double> costs = costs_of(random_lengths(seed, num_ranks == 2 ? 11 : 8, 100), {});
    const double got = busiest(deal_by_cost(costs, static_cast<std::int64_t>(num_ranks)), costs);
    const double bound = 4.0 / 3 - 1.0 / (3 * static_cast<double>(num_ranks));  // Graham 1969
    EXPECT_LE(got, bound * best_dealing(costs, num_ranks) * (1 + 1e-12)) << seed;
  }
}

TEST(DealByCost, BalancesManyItemsAndTakesTiesInOrder) {
  const std::vector<double> costs = costs_of(random_lengths(3, 1000, 5000), {.per_token = 1, .per_pair = 1e-3});
  const double total = std::accumulate(costs.begin(), costs.end(), 0.0);
  EXPECT_LE(busiest(deal_by_cost(costs, 8), costs), total / 8 * 1.001);
  EXPECT_EQ(deal_by_cost({2, 2, 2, 2, 2}, 2), (Dealt{{0, 2, 4}, {1, 3}}));
  EXPECT_EQ(deal_by_cost({1, 5, 4}, 2), (Dealt{{1}, {0, 2}}));
}

TEST(DealByCost, RefusesWhatHasNoOrder) {
  EXPECT_DFM_ERROR(ExitCode::kInternal, "for item 1", deal_by_cost({1, std::nan("")}, 2));
  EXPECT_DFM_ERROR(ExitCode::kInternal, "-1", deal_by_cost({-1}, 2));
  EXPECT_DFM_ERROR(ExitCode::kInternal, "got 0 ranks", deal_by_cost({1}, 0));
}

std::string to_text(const std::vector<Row>& rows) {
  std::string text;
  for (const Row& row : rows) {
    for (const std::int64_t member : row.members) text += fmt::format("{},", member);
    text += fmt::format("{}/{}; ", row.num_tokens, row.padded_tokens);
  }
  return text;
}

TEST(PlanStep, IsPackRowsOnOneRank) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const PackLimits limits{.max_tokens = 1000, .max_samples = static_cast<std::int64_t>(seed), .token_multiple = 64};
    const std::vector<std::int64_t> lengths = random_lengths(seed, 60, limits.max_tokens);
    const auto plan = plan_step(lengths, limits, 1, {.per_token = 3, .per_pair = 7});
    ASSERT_EQ(plan.size(), 1U);
    EXPECT_EQ(to_text(plan[0]), to_text(pack_rows(lengths, limits)));
  }
}

TEST(PlanStep, KeepsEverySampleOnceWithinTheLimitsOnAnyRanks) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    const PackLimits limits{
        .max_tokens = 1000, .max_samples = static_cast<std::int64_t>(seed % 3) * 4, .token_multiple = 128};
    const std::size_t count = seed % 4 == 0 ? 3 : 100;
    const std::vector<std::int64_t> lengths = random_lengths(seed, count, limits.max_tokens);
    const PackCost cost{.per_token = 1, .per_pair = seed % 2 == 0 ? 0.0 : 0.01};
    const std::vector<double> costs = costs_of(lengths, cost);
    const std::vector<std::int64_t> allowed = row_lengths(limits);
    for (const std::int64_t num_ranks : {2, 3, 8}) {
      const auto plan = plan_step(lengths, limits, num_ranks, cost);
      ASSERT_EQ(plan.size(), static_cast<std::size_t>(num_ranks));
      std::vector<int> seen(count, 0);
      Dealt dealt;
      for (const std::vector<Row>& rows : plan) {
        dealt.emplace_back();
        for (const Row& row : rows) {
          std::int64_t sum = 0;
          for (const std::int64_t member : row.members) {
            ++seen[static_cast<std::size_t>(member)];
            sum += lengths[static_cast<std::size_t>(member)];
            dealt.back().push_back(member);
          }
          EXPECT_EQ(sum, row.num_tokens);
          EXPECT_LE(sum, limits.max_tokens);
          EXPECT_TRUE(std::binary_search(allowed.begin(), allowed.end(), row.padded_tokens));
          EXPECT_GE(row.padded_tokens, sum);
          EXPECT_FALSE(row.members.empty());
          if (limits.max_samples > 0) {
            EXPECT_LE(static_cast<std::int64_t>(row.members.size()), limits.max_samples);
          }
        }
      }
      EXPECT_EQ(seen, std::vector<int>(count, 1));
      if (count < static_cast<std::size_t>(num_ranks)) {
        EXPECT_EQ(std::count_if(plan.begin(), plan.end(), [](const auto& rows) { return rows.empty(); }),
                  num_ranks - static_cast<std::int64_t>(count));
      }
      // No dealing is better than the mean or the dearest sample; this one exceeds them by at most the last one dealt.
      const double mean = std::accumulate(costs.begin(), costs.end(), 0.0) / static_cast<double>(num_ranks);
      const double dearest = *std::max_element(costs.begin(), costs.end());
      const double cheapest = *std::min_element(costs.begin(), costs.end());
      EXPECT_LE(busiest(dealt, costs), std::max({dearest, 4.0 / 3 * mean, mean + cheapest}) * (1 + 1e-12));
    }
  }
}

TEST(PlanStep, NamesASampleByItsPlaceInTheStep) {
  EXPECT_DFM_ERROR(ExitCode::kData, "sample 2 of the step: got 11 tokens",
                   plan_step({3, 4, 11, 5}, {.max_tokens = 10}, 3, {}));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "token_multiple 0", plan_step({3}, {.token_multiple = 0}, 2, {}));
}

TEST(RowLengths, AreAtMostSixteenMultiples) {
  for (const std::int64_t max_tokens : {1, 100, 128, 1000, 2048, 2049, 15360, 99999}) {
    for (const std::int64_t multiple : {1, 128, 1024}) {
      const std::vector<std::int64_t> lengths = row_lengths({.max_tokens = max_tokens, .token_multiple = multiple});
      EXPECT_LE(lengths.size(), 16U);
      EXPECT_TRUE(std::is_sorted(lengths.begin(), lengths.end()));
      EXPECT_GE(lengths.back(), max_tokens);
      EXPECT_LT(lengths.back(), max_tokens + multiple);
      for (const std::int64_t length : lengths) EXPECT_EQ(length % multiple, 0);
    }
  }
}

}  // namespace
}  // namespace dfm::data
