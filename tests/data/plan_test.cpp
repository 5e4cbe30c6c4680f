#include "dfm/data/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
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
