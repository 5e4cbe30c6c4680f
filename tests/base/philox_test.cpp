#include "dfm/base/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace dfm {
namespace {

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10), which cuRAND and PyTorch share.
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, PutsSeedPositionElementAndPurposeIntoTheirWords) {
  const std::uint64_t seed = 0x299f31d0a4093822, n = 0x85a308d3243f6a88;
  EXPECT_EQ(philox(seed, n, 0x13198a2e, static_cast<Purpose>(0x03707344)),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The cells of the rows after the line that starts with `header` in docs/numerics.md, up to the next blank line.
std::vector<std::vector<std::string>> table_of_manual(const std::string& header) {
  std::ifstream manual(std::string(DFM_SOURCE_DIR) + "/docs/numerics.md");
  std::vector<std::vector<std::string>> rows;
  std::string line;
  while (std::getline(manual, line) && !line.starts_with(header)) {
  }
  std::getline(manual, line);  // the rule under the header
  while (std::getline(manual, line) && !line.empty()) {
    std::istringstream cells(line.substr(1));
    rows.emplace_back();
    for (std::string cell; std::getline(cells, cell, '|');) rows.back().push_back(cell);
  }
  return rows;
}

TEST(Philox, GivesTheTestVectorsOfTheManual) {
  const auto rows = table_of_manual("| seed | n | element / 4");
  ASSERT_GE(rows.size(), 5U);
  for (const auto& row : rows) {
    ASSERT_EQ(row.size(), 7U);
    const auto hex = [&](std::size_t i) { return std::stoull(row[i], nullptr, 16); };
    const PhiloxBlock block = philox(hex(0), hex(1), static_cast<std::uint32_t>(hex(2)), static_cast<Purpose>(hex(3)));
    std::istringstream words(row[4]), normals(row[6]);
    for (const std::uint32_t word : block) {
      std::uint32_t want = 0;
      words >> std::hex >> want;
      EXPECT_EQ(word, want) << row[0] << row[1] << row[4];
    }
    EXPECT_EQ(philox_uniform(block[0]), std::stof(row[5]));
    for (const float normal : philox_normal4(block)) {
      float want = 0;
      normals >> want;
      EXPECT_FLOAT_EQ(normal, want) << row[0] << row[1] << row[6];
    }
  }
}

TEST(PhiloxPermute, GivesTheOrdersOfTheManual) {
  const auto rows = table_of_manual("| seed (decimal) |");
  ASSERT_GE(rows.size(), 2U);
  for (const auto& row : rows) {
    const std::uint64_t count = std::stoull(row[2]);
    std::istringstream order(row[3]);
    for (std::uint64_t i = 0; i < count; ++i) {
      std::uint64_t want = count;
      order >> want;
      EXPECT_EQ(philox_permute(std::stoull(row[0]), std::stoull(row[1]), count, i, Purpose::kOrder), want);
    }
  }
}

TEST(PhiloxUniform, LiesInTheOpenUnitInterval) {
  EXPECT_GT(philox_uniform(0U), 0.0F);
  EXPECT_LT(philox_uniform(0xffffffffU), 1.0F);
  EXPECT_EQ(philox_uniform(0x80000000U), 0.5F + 0x1p-24F);
  EXPECT_EQ(philox_uniform(9, 4, 6, Purpose::kSigma), philox_uniform(philox(9, 4, 1, Purpose::kSigma)[2]));
}

TEST(PhiloxNormal, HasTheMomentsOfANormal) {
  std::vector<float> normals(400000);
  philox_normal(3, 5, Purpose::kNoise, 0, normals);
  double sum = 0, squares = 0, fourth = 0, neighbours = 0;
  for (std::size_t i = 0; i < normals.size(); ++i) {
    const double x = normals[i];
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    if (i > 0) neighbours += x * static_cast<double>(normals[i - 1]);
  }
  const double count = static_cast<double>(normals.size());
  EXPECT_NEAR(sum / count, 0.0, 5 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 1.0, 5 * std::sqrt(2 / count));
  EXPECT_NEAR(fourth / count, 3.0, 5 * std::sqrt(96 / count));
  EXPECT_NEAR(neighbours / count, 0.0, 5 / std::sqrt(count));
}

TEST(PhiloxNormal, DependsOnTheElementNotOnTheCut) {
  std::vector<float> whole(103), part(50);
  philox_normal(3, 5, Purpose::kNoise, 0, whole);
  for (const std::uint64_t first : {0, 1, 2, 3, 17, 53}) {
    philox_normal(3, 5, Purpose::kNoise, first, part);
    for (std::size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], whole[first + i]) << first << " + " << i;
  }
}

TEST(PhiloxNormal, StaysFiniteAtTheEndsOfTheUniform) {
  for (const std::uint32_t word : {0U, 0xffffffffU}) {
    for (const float x : philox_normal4({word, word, word, word})) EXPECT_TRUE(std::isfinite(x));
  }
  EXPECT_LT(std::abs(philox_normal4({0, 0, 0, 0})[0]), 6.0F);
}

TEST(PhiloxPermute, IsABijectionForEverySize) {
  for (std::uint64_t n = 1; n <= 70; ++n) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t to = philox_permute(11, 2, n, i, Purpose::kOrder);
      EXPECT_LT(to, n);
      seen.insert(to);
    }
    EXPECT_EQ(seen.size(), n);
  }
}

TEST(PhiloxPermute, IsFreshForEachEpochAndSeed) {
  int same_epoch = 0, same_seed = 0, fixed = 0;
  constexpr std::uint64_t kCount = 5000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const std::uint64_t to = philox_permute(11, 2, kCount, i, Purpose::kOrder);
    same_epoch += to == philox_permute(11, 3, kCount, i, Purpose::kOrder);
    same_seed += to == philox_permute(12, 2, kCount, i, Purpose::kOrder);
    fixed += to == i;
  }
  for (const int matches : {same_epoch, same_seed, fixed}) EXPECT_LE(matches, 12);  // one expected of each
}

TEST(PhiloxPermute, ReachesHugeSets) {
  const std::uint64_t n = 40'000'000'000ULL;
  EXPECT_LT(philox_permute(1, 0, n, n - 1, Purpose::kOrder), n);
  EXPECT_NE(philox_permute(1, 0, n, 0, Purpose::kOrder), philox_permute(1, 0, n, 1, Purpose::kOrder));
}

}  // namespace
}  // namespace dfm
