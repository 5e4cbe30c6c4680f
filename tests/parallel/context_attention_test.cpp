#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <random>

#include "dfm/comm/world.h"
#include "dfm/ops/attention.h"
#include "dfm/parallel/linear.h"
#include "dfm/parallel/regions.h"
#include "parallel/require.h"
#include "parallel/test_groups.h"
#include "support/ranks.h"

namespace dfm::parallel {
namespace {

using test::random_rows;
using test::require;
using test::require_close;

constexpr std::int64_t kSize = 8;

struct Row {
  std::vector<std::int64_t> lengths;
  std::int64_t length = 0;  // 0: the tokens rounded up
};

// Output and gradients of q, k, v.
using Results = std::array<at::Tensor, 4>;

Results results(const at::Tensor& out, const at::Tensor& qkv, const at::Tensor& cotangent) {
  const at::Tensor grad = torch::autograd::grad({out}, {qkv}, {cotangent})[0];
  return {out.detach(), grad.select(2, 0), grad.select(2, 1), grad.select(2, 2)};
}

// As the model gives it: q, k and v beside one another in [T, H, 3, d].
at::Tensor random_qkv(std::int64_t rows, std::int64_t heads, at::ScalarType dtype) {
  return random_rows({rows, heads, 3, kSize}, 11).to(dtype);
}
at::Tensor random_cotangent(std::int64_t rows, std::int64_t heads, at::ScalarType dtype) {
  return random_rows({rows, heads, kSize}, 12).to(dtype);
}

Results on_one_rank(const Row& row, std::int64_t length, std::int64_t heads, at::ScalarType input,
                    at::ScalarType dtype) {
  const at::Tensor qkv = random_qkv(length, heads, input).to(dtype).requires_grad_(true);
  const ops::Segments segments = ops::Segments::from_lengths(row.lengths);
  const at::Tensor out =
      ops::packed_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), segments, segments);
  return results(out, qkv, random_cotangent(length, heads, input).to(dtype));
}

struct Found {
  Results mine, whole;  // of this rank's tokens; of the whole row on one rank, in the same dtype
  Results exact;        // the same in float64
  std::int64_t padding_from = 0;
};
Found over_ranks(const Row& row, const comm::GroupPtr& group, ContextComm how, at::ScalarType dtype) {
  const std::int64_t heads = 4 % group->size() == 0 ? 4 : group->size();
  const Parallel parallel{.context = group, .context_comm = how};
  const RowSegments segments = RowSegments::make(row.lengths, parallel, at::kCPU, row.length);
  const auto mine = [&](const at::Tensor& x) { return x.narrow(0, segments.local_first, segments.local_length); };
  const at::Tensor qkv = mine(random_qkv(segments.length, heads, dtype)).clone().requires_grad_(true);
  const at::Tensor out = context_attention(qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2), segments, parallel);
  Found found;
  found.mine = results(out, qkv, mine(random_cotangent(segments.length, heads, dtype)));
  found.whole = on_one_rank(row, segments.length, heads, dtype, dtype);
  found.exact = on_one_rank(row, segments.length, heads, dtype, at::kDouble);
  for (std::size_t i = 0; i < found.mine.size(); ++i) {
    found.whole[i] = mine(found.whole[i]);
    found.exact[i] = mine(found.exact[i]);
  }
  found.padding_from = segments.context.num_tokens();
  return found;
}

std::vector<Row> rows(std::int64_t ranks) {
  std::vector<Row> all{
      {{17 * ranks}},                        // one segment over all ranks
      {{1}},                                 // one token; the other ranks have padding alone
      {{5, 4}, 12 * ranks},                  // likewise
      {{7, 0, 9, 1, 0}, 0},                  // segments without tokens
      {std::vector<std::int64_t>(13, 1)},    // of one token each
      {{3, 20 * ranks - 5, 2}, 24 * ranks},  // one that crosses all ranks between two that do not
  };
  std::mt19937 random(5);
  for (int i = 0; i < 12; ++i) {
    Row row;
    for (std::size_t n = 1 + random() % 6; n > 0; --n) row.lengths.push_back(random() % 3 == 0 ? 1 : 1 + random() % 50);
    if (i % 2 == 0) {
      const std::int64_t tokens = std::accumulate(row.lengths.begin(), row.lengths.end(), std::int64_t{0});
      row.length = (tokens / ranks + 1 + static_cast<std::int64_t>(random() % 9)) * ranks;
    }
    all.push_back(row);
  }
  return all;
}

constexpr std::array<const char*, 4> kNames{"out", "gradient of q", "gradient of k", "gradient of v"};

void check_equals_one_rank(const comm::GroupPtr& group) {
  for (const ContextComm how : {ContextComm::kA2a, ContextComm::kP2p}) {
    for (const auto& [dtype, tolerance] : {std::pair(at::kDouble, 1e-12), std::pair(at::kFloat, 1e-5)}) {
      for (const Row& row : rows(group->size())) {
        const Found found = over_ranks(row, group, how, dtype);
        for (std::size_t i = 0; i < kNames.size(); ++i) {
          const std::string what =
              fmt::format("{} over {} ranks in {}, segments {}: {}", static_cast<int>(how), group->size(),
                          c10::toString(dtype), fmt::join(row.lengths, " "), kNames[i]);
          require_close(what, found.mine[i], found.whole[i], tolerance);
          const at::Tensor padding = found.mine[i].slice(0, found.padding_from);
          require(padding.count_nonzero().item<std::int64_t>() == 0, what + ": padding is not zero");
        }
      }
    }
  }
}

double rms_error(const at::Tensor& got, const at::Tensor& want) {
  return (got.to(at::kDouble) - want).square().mean().sqrt().item<double>();
}

// Results of bfloat16 blocks are merged in float32: about one rounding more than one rank's.
void check_bfloat16(const comm::GroupPtr& group) {
  const Found found = over_ranks({{64 * group->size()}, 0}, group, ContextComm::kP2p, at::kBFloat16);
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    const double mine = rms_error(found.mine[i], found.exact[i]), one = rms_error(found.whole[i], found.exact[i]);
    require(mine < 2 * one, fmt::format("bfloat16 {}: got an error of {:.3g}, one rank {:.3g}", kNames[i], mine, one));
  }
}

// What has no partner on another rank stays at home.
void check_traffic(const comm::GroupPtr& group) {
  const auto counting = std::make_shared<test::CountingGroup>(group);
  const std::int64_t ranks = group->size(), rank = group->rank();
  over_ranks({std::vector<std::int64_t>(static_cast<std::size_t>(2 * ranks), 5), 0}, counting, ContextComm::kP2p,
             at::kFloat);
  require(counting->calls == 0, "segments that end where parts do: got an exchange");
  // The last 2 of each rank's 10 tokens and the first 3 of the next one's are a segment; keys and values forward and
  // backward, gradients back.
  std::vector<std::int64_t> lengths{8};
  for (std::int64_t i = 1; i < ranks; ++i) lengths.insert(lengths.end(), {5, 5});
  lengths.push_back(2);
  over_ranks({lengths, 0}, counting, ContextComm::kP2p, at::kFloat);
  const std::int64_t sent_keys = (rank + 1 < ranks ? 2 : 0) + (rank > 0 ? 3 : 0);
  const std::int64_t sent_gradients = (rank + 1 < ranks ? 3 : 0) + (rank > 0 ? 2 : 0);
  const std::int64_t width = 2 * (4 % ranks == 0 ? 4 : ranks) * kSize;
  require(
      counting->sent_elements == (2 * sent_keys + sent_gradients) * width,
      fmt::format("got {} elements sent, want {}", counting->sent_elements, (2 * sent_keys + sent_gradients) * width));
}

RANK_CASE(context_attention) {
  check_equals_one_rank(world.all());
  check_bfloat16(world.all());
  check_traffic(world.all());
}

TEST(ContextAttention, EqualsOneRanks) {
  for (const int ranks : {2, 3, 4}) test::run_ranks(ranks, "context_attention");
}

TEST(ContextAttention, IsPackedAttentionOnAGroupOfOne) {
  const Row row{{4, 1, 6}, 16};
  for (const ContextComm how : {ContextComm::kA2a, ContextComm::kP2p}) {
    const Found found = over_ranks(row, comm::alone(), how, at::kFloat);
    for (std::size_t i = 0; i < kNames.size(); ++i) EXPECT_TRUE(at::equal(found.mine[i], found.whole[i])) << kNames[i];
  }
}

// --- a layer's attention over tensor x context ranks: column linear, attention, row linear ---------------------------

void check_attention_layer(comm::World& world, int tensor_size, bool sequence, ContextComm how) {
  const int context_size = world.size() / tensor_size, t = world.rank() % tensor_size, c = world.rank() / tensor_size;
  std::vector<int> tensor_ranks, context_ranks;
  for (int i = 0; i < tensor_size; ++i) tensor_ranks.push_back(c * tensor_size + i);
  for (int i = 0; i < context_size; ++i) context_ranks.push_back(i * tensor_size + t);
  const Parallel parallel{world.group("tensor", tensor_ranks), world.group("context", context_ranks), sequence, how};

  constexpr std::int64_t kHeads = 8, kWidth = 12;
  const Row row{{9, 30, 1, 4}, 48};
  const auto attention = [&](const at::Tensor& qkv, const RowSegments& segments, const Parallel& ranks) {
    const at::Tensor x = qkv.unflatten(1, {-1, 3, kSize});
    return context_attention(x.select(2, 0), x.select(2, 1), x.select(2, 2), segments, ranks).flatten(1);
  };
  const at::Tensor x = random_rows({row.length, kWidth}, 1).requires_grad_(true),
                   w1 = random_rows({kHeads * 3 * kSize, kWidth}, 2).requires_grad_(true),
                   w2 = random_rows({kWidth, kHeads * kSize}, 3).requires_grad_(true),
                   cotangent = random_rows({row.length, kWidth}, 4);
  const at::Tensor want =
      at::linear(attention(at::linear(x, w1), RowSegments::make(row.lengths, {}, at::kCPU, row.length), {}), w2);
  const auto want_grads = torch::autograd::grad({want}, {x, w1, w2}, {cotangent});

  const RowSegments segments = RowSegments::make(row.lengths, parallel, at::kCPU, row.length);
  const auto tokens = [&](const at::Tensor& all) { return all.narrow(0, segments.local_first, segments.local_length); };
  const auto share = [&](const at::Tensor& all, std::int64_t dim) {
    return all.chunk(tensor_size, dim)[static_cast<std::size_t>(t)];
  };
  const auto leaf = [](const at::Tensor& part) { return part.detach().clone().requires_grad_(true); };
  const at::Tensor my_x = leaf(tokens(x)), my_w1 = leaf(share(w1, 0)), my_w2 = leaf(share(w2, 1));
  const at::Tensor y = RowParallelLinear(parallel, my_w2)
                           .forward(attention(ColumnParallelLinear(parallel, my_w1).forward(my_x), segments, parallel));
  const auto grads = torch::autograd::grad({y}, {my_x, my_w1, my_w2}, {tokens(cotangent)});
  // Weights saw the context rank's tokens alone.
  parallel.context->all_reduce(grads[1]).wait();
  parallel.context->all_reduce(grads[2]).wait();
  const std::string name = fmt::format("tensor {} context {} sequence {} {}: ", tensor_size, context_size, sequence,
                                       how == ContextComm::kA2a ? "a2a" : "p2p");
  require_close(name + "y", y, tokens(want), 1e-12);
  require_close(name + "gradient of x", grads[0], tokens(want_grads[0]), 1e-12);
  require_close(name + "gradient of the column weight", grads[1], share(want_grads[1], 0), 1e-12);
  require_close(name + "gradient of the row weight", grads[2], share(want_grads[2], 1), 1e-12);
}

RANK_CASE(attention_layers) {
  for (int tensor_size = 1; tensor_size <= world.size(); ++tensor_size) {
    if (world.size() % tensor_size != 0 || 8 % tensor_size != 0) continue;
    for (const bool sequence : {false, true}) {
      for (const ContextComm how : {ContextComm::kA2a, ContextComm::kP2p}) {
        if (how == ContextComm::kA2a && 8 / tensor_size % (world.size() / tensor_size) != 0) continue;
        check_attention_layer(world, tensor_size, sequence, how);
      }
    }
  }
}

TEST(AttentionLayer, EqualsOneRanksOverTensorAndContextRanks) { test::run_ranks(4, "attention_layers"); }

}  // namespace
}  // namespace dfm::parallel
