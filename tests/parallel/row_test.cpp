#include "dfm/parallel/row.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "parallel/test_groups.h"
#include "support/errors.h"

namespace dfm::parallel {
namespace {

Parallel place(int tensor_rank, int tensor_size, int context_rank, int context_size, bool sequence) {
  return {.tensor = std::make_shared<test::SilentGroup>(tensor_rank, tensor_size),
          .context = std::make_shared<test::SilentGroup>(context_rank, context_size),
          .sequence = sequence};
}

// The segment of each row, -1 for padding.
std::vector<int> labels(const ops::Segments& segments, std::int64_t length) {
  std::vector<int> result;
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    result.insert(result.end(), static_cast<std::size_t>(segments.length(i)), static_cast<int>(i));
  }
  result.resize(static_cast<std::size_t>(length), -1);
  return result;
}
std::vector<int> slice(const std::vector<int>& all, std::int64_t first, std::int64_t count) {
  return {all.begin() + first, all.begin() + first + count};
}

void expect_consistent(const ops::Segments& segments) {
  EXPECT_TRUE(at::equal(segments.cu_seqlens, at::tensor(segments.offsets, at::kLong).to(at::kInt)));
  std::int64_t longest = 0;
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) longest = std::max(longest, segments.length(i));
  EXPECT_EQ(segments.max_length, longest);
}

// By brute force over the labels of all rows: which segment both parts have tokens of.
void expect_shared(const SharedSegment& shared, const std::vector<int>& mine, const std::vector<int>& theirs) {
  std::vector<std::int64_t> rows_mine, rows_theirs;
  for (const int segment : std::vector<int>(mine.begin(), mine.end())) {
    if (segment < 0 || std::find(theirs.begin(), theirs.end(), segment) == theirs.end()) continue;
    rows_mine = {}, rows_theirs = {};
    for (std::size_t i = 0; i < mine.size(); ++i) {
      if (mine[i] == segment) rows_mine.push_back(static_cast<std::int64_t>(i));
      if (theirs[i] == segment) rows_theirs.push_back(static_cast<std::int64_t>(i));
    }
  }
  ASSERT_EQ(shared.is_empty(), rows_mine.empty());
  if (rows_mine.empty()) return;
  EXPECT_EQ(shared.mine_first, rows_mine.front());
  EXPECT_EQ(shared.theirs_first, rows_theirs.front());
  EXPECT_EQ(shared.mine.offsets, (std::vector<std::int64_t>{0, static_cast<std::int64_t>(rows_mine.size())}));
  EXPECT_EQ(shared.theirs.offsets, (std::vector<std::int64_t>{0, static_cast<std::int64_t>(rows_theirs.size())}));
}

void expect_parts(const std::vector<std::int64_t>& lengths, std::int64_t length, int tensor_size, int context_size,
                  bool sequence) {
  const std::int64_t parts = context_size * (sequence ? tensor_size : 1);
  std::int64_t next_part = 0;
  for (int c = 0; c < context_size; ++c) {
    for (int t = 0; t < tensor_size; ++t) {
      const RowSegments row =
          RowSegments::make(lengths, place(t, tensor_size, c, context_size, sequence), at::kCPU, length);
      EXPECT_EQ(row.length % parts, 0);
      if (length == 0) {
        EXPECT_LT(row.length - row.row.num_tokens(), parts);
      } else {
        EXPECT_EQ(row.length, length);
      }
      const std::vector<int> all = labels(row.row, row.length);
      const std::int64_t part = row.length / context_size;
      ASSERT_EQ(row.contexts.size(), static_cast<std::size_t>(context_size));
      std::vector<std::vector<int>> of_context;
      for (int i = 0; i < context_size; ++i) {
        of_context.push_back(slice(all, i * part, part));
        const ops::Segments& segments = row.contexts[static_cast<std::size_t>(i)];
        EXPECT_EQ(segments.num_segments(), row.row.num_segments());
        EXPECT_EQ(labels(segments, part), of_context.back());
        expect_consistent(segments);
      }
      const auto mine = static_cast<std::size_t>(c);
      EXPECT_EQ(row.context.offsets, row.contexts[mine].offsets);
      for (std::size_t i = 0; i < of_context.size(); ++i) {
        if (i == mine) {
          EXPECT_TRUE(row.shared[i].is_empty());
        } else {
          expect_shared(row.shared[i], of_context[mine], of_context[i]);
        }
      }
      // Parts between the matrices follow one another, context ranks outermost; tensor ranks share one without
      // sequence parallelism.
      EXPECT_EQ(row.local_length, row.length / parts);
      EXPECT_EQ(row.local_first, next_part * row.local_length);
      EXPECT_EQ(labels(row.local, row.local_length), slice(all, row.local_first, row.local_length));
      expect_consistent(row.local);
      if (sequence || t == tensor_size - 1) ++next_part;
    }
  }
  EXPECT_EQ(next_part, parts);
}

TEST(RowSegments, AreTheRowsCutIntoEqualParts) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<std::int64_t>(random() % static_cast<unsigned>(n)); };
  for (int trial = 0; trial < 60; ++trial) {
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = below(7); i >= 0; --i) lengths.push_back(below(3) == 0 ? below(2) : below(30));
    const int tensor_size = 1 + static_cast<int>(below(3)), context_size = 1 + static_cast<int>(below(4));
    const bool sequence = below(2) == 0;
    expect_parts(lengths, 0, tensor_size, context_size, sequence);
    const std::int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    const std::int64_t parts = context_size * (sequence ? tensor_size : 1);
    expect_parts(lengths, (tokens / parts + 1 + below(20)) * parts, tensor_size, context_size, sequence);
  }
}

TEST(RowSegments, OfOneRankAreTheRow) {
  const RowSegments row = RowSegments::make({3, 0, 5}, {});
  EXPECT_EQ(row.length, 8);
  EXPECT_EQ(row.local_length, 8);
  EXPECT_EQ(row.local.offsets, row.row.offsets);
  EXPECT_EQ(row.context.offsets, row.row.offsets);
}

TEST(RowSegments, RefuseALengthThatDoesNotDivideOrIsTooShort) {
  EXPECT_DFM_ERROR(ExitCode::kInternal, "row: got length 9, want a multiple of 2 and at least 8",
                   RowSegments::make({3, 5}, place(0, 1, 0, 2, false), at::kCPU, 9));
  EXPECT_DFM_ERROR(ExitCode::kInternal, "row: got length 6, want a multiple of 2 and at least 8",
                   RowSegments::make({3, 5}, place(0, 1, 0, 2, false), at::kCPU, 6));
}

}  // namespace
}  // namespace dfm::parallel
