#include "dfm/comm/sharded_tensor.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

using Shape = std::vector<std::int64_t>;

at::Tensor numbered(const Shape& shape) {
  std::int64_t numel = 1;
  for (const std::int64_t size : shape) numel *= size;
  return at::arange(numel, at::kLong).view(shape);
}

// The slice's own data, by ATen.
at::Tensor expected(const at::Tensor& whole, const Slice& slice) {
  const at::Tensor block = slice.dim < 0 ? whole : whole.narrow(slice.dim, slice.begin, slice.end - slice.begin);
  return block.reshape({-1}).narrow(0, slice.first, slice.numel());
}

at::Tensor gathered(const at::Tensor& whole, const Shape& shape, const Slice& slice) {
  at::Tensor own = at::full({slice.numel()}, -1, at::kLong);
  const at::Tensor flat = whole.reshape({-1});
  std::int64_t next = 0;
  for_each_run(shape, slice, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    EXPECT_EQ(to, next) << "runs follow each other";
    EXPECT_GT(count, 0);
    own.narrow(0, to, count).copy_(flat.narrow(0, from, count));
    next = to + count;
  });
  EXPECT_EQ(next, slice.numel());
  return own;
}

TEST(ShardedTensor, RunsOfRandomSlicesEqualNarrowAndReshape) {
  std::mt19937 random(7);
  const auto below = [&](std::int64_t limit) {
    return static_cast<std::int64_t>(random() % static_cast<unsigned>(limit));
  };
  for (const Shape& shape : {Shape{24}, Shape{6, 8}, Shape{8, 6}, Shape{4, 6, 10}, Shape{1, 12}, Shape{12, 1}}) {
    const at::Tensor whole = numbered(shape);
    for (int dim = -1; dim < static_cast<int>(shape.size()); ++dim) {
      for (int trial = 0; trial < 50; ++trial) {
        Slice block = whole_slice(shape);
        if (dim >= 0) {
          const std::int64_t size = shape[static_cast<std::size_t>(dim)];
          block.dim = dim;
          block.begin = below(size);
          block.end = block.begin + 1 + below(size - block.begin);
          block.last = expected(whole, {.dim = dim,
                                        .begin = block.begin,
                                        .end = block.end,
                                        .first = 0,
                                        .last = whole.numel() / size * (block.end - block.begin)})
                           .numel();
        }
        const std::int64_t first = below(block.numel() + 1);
        const Slice slice = sub_slice(block, first, first + below(block.numel() - first + 1));
        EXPECT_TRUE(at::equal(gathered(whole, shape, slice), expected(whole, slice)));
        if (slice.numel() == 0) continue;
        const Slice deeper = sub_slice(slice, slice.numel() / 3, slice.numel());
        EXPECT_TRUE(at::equal(gathered(whole, shape, deeper),
                              expected(whole, slice).narrow(0, slice.numel() / 3, deeper.numel())));
      }
    }
  }
}

TEST(ShardedTensor, BlocksCoverTheWholeOnce) {
  const Shape shape{4, 6, 8};
  const at::Tensor whole = numbered(shape);
  for (const auto& [dim, count] : {std::pair{0, 4}, {1, 3}, {2, 2}, {0, 1}}) {
    std::vector<at::Tensor> parts;
    for (int index = 0; index < count; ++index) {
      const Slice slice = block_slice(shape, dim, index, count);
      parts.push_back(gathered(whole, shape, slice).view(block_shape(shape, slice)));
    }
    EXPECT_TRUE(at::equal(at::cat(parts, dim), whole));
  }
  EXPECT_EQ(block_slice(shape, -1, 3, 4), whole_slice(shape));
}

TEST(ShardedTensor, SlicesWithoutGapsAreOneRun) {
  const auto count_runs = [](const Shape& shape, const Slice& slice) {
    int runs = 0;
    for_each_run(shape, slice, [&](std::int64_t, std::int64_t, std::int64_t) { ++runs; });
    return runs;
  };
  EXPECT_EQ(count_runs({6, 8}, whole_slice({6, 8})), 1);
  EXPECT_EQ(count_runs({6, 8}, block_slice({6, 8}, 0, 1, 3)), 1);
  EXPECT_EQ(count_runs({6, 8}, block_slice({6, 8}, 1, 1, 2)), 6);
  EXPECT_EQ(count_runs({6, 8}, block_slice({6, 8}, 1, 0, 1)), 1);
  EXPECT_EQ(count_runs({0, 8}, whole_slice({0, 8})), 0);
}

TEST(ShardedTensor, ImpossibleSlicesAreRefused) {
  const auto nothing = [](std::int64_t, std::int64_t, std::int64_t) {};
  EXPECT_THROW(block_slice({6, 8}, 0, 0, 4), InternalError);
  EXPECT_THROW(block_slice({6, 8}, 2, 0, 1), InternalError);
  EXPECT_THROW(block_slice({6, 8}, 0, 3, 3), InternalError);
  EXPECT_THROW(sub_slice(whole_slice({6}), 4, 7), InternalError);
  EXPECT_THROW(for_each_run({6}, {.dim = 0, .begin = 4, .end = 7, .last = 3}, nothing), InternalError);
  EXPECT_THROW(for_each_run({6}, {.last = 7}, nothing), InternalError);
}

TEST(ShardedTensor, WholeTensorHasOnePieceOnItsHolder) {
  const at::Tensor x = at::rand({3, 4});
  const ShardedTensor there = whole_tensor("x", x, 1, 1, {3, 4}, at::kFloat);
  ASSERT_EQ(there.local.size(), 1u);
  EXPECT_TRUE(at::equal(there.local[0], x.view(-1)));
  const ShardedTensor elsewhere = whole_tensor("x", {}, 1, 0, {3, 4}, at::kFloat);
  EXPECT_TRUE(elsewhere.local.empty());
  ASSERT_EQ(elsewhere.pieces.size(), 1u);
  EXPECT_EQ(elsewhere.pieces[0].rank, 1);
  EXPECT_EQ(elsewhere.pieces[0].slice, whole_slice({3, 4}));
}

}  // namespace
}  // namespace dfm::comm
