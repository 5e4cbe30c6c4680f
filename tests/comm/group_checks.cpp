#include "comm/group_checks.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <limits>

namespace dfm::test {
namespace {

constexpr std::int64_t kMostElements = 1 << 21;

// A rank's numbers, of many magnitudes, so that the order of a sum shows in its bits. Every rank can have every
// other's.
const at::Tensor& numbers_of(int rank) {
  static std::map<int, at::Tensor> numbers;
  if (const auto found = numbers.find(rank); found != numbers.end()) return found->second;
  at::Generator random = at::detail::createCPUGenerator(static_cast<std::uint64_t>(rank) + 1);
  const at::Tensor exponents = at::randint(-3, 4, {kMostElements}, random, at::kFloat);
  return numbers[rank] = at::randn({kMostElements}, random, at::kFloat).mul_(at::exp2(exponents.mul_(4)));
}

}  // namespace

at::Tensor input_of(int rank, std::int64_t numel, at::ScalarType dtype, int salt) {
  const at::Tensor x = numbers_of(rank).narrow(0, salt * 997LL % (kMostElements - numel), numel);
  if (dtype == at::kByte) return x.mul(100).to(at::kLong).bitwise_and(255).to(at::kByte);
  if (dtype == at::kLong) return x.mul(1000).to(at::kLong);
  return dtype == at::kDouble ? x.to(at::kDouble).div_(3) : x.to(dtype, false, /*copy=*/true);
}

// Rank 0 + rank 1 + ..., bfloat16 in float32 and rounded once.
at::Tensor ordered_sum(int num_ranks, const std::function<at::Tensor(int)>& of_rank) {
  const at::ScalarType dtype = of_rank(0).scalar_type();
  const at::ScalarType running = dtype == at::kBFloat16 ? at::kFloat : dtype;
  at::Tensor sum = of_rank(0).to(running, false, /*copy=*/true);
  for (int r = 1; r < num_ranks; ++r) sum.add_(of_rank(r).to(running));
  return sum.to(dtype);
}

namespace {

// A slot's half holds 131072 floats: sizes below, at and above it, and far above.
const std::vector<std::int64_t> kSizes = {0, 1, 3, 1000, 5003, 131072, 131073, 400003};
const std::vector<at::ScalarType> kSummed = {at::kFloat, at::kDouble, at::kBFloat16, at::kLong};

void expect_equal(const at::Tensor& got, const at::Tensor& want) { EXPECT_TRUE(at::equal(got.cpu(), want)); }

// NCCL has an order of its own, and rounds bfloat16 more than once: each rounding is one part in 2^24, 2^53 or 2^8 of
// the largest term. Numbers of 50000 and less stand in the sums.
void expect_sum(const at::Tensor& got, const at::Tensor& want, const Where& where) {
  if (where.has_ordered_sums || want.numel() == 0) return expect_equal(got, want);
  const at::ScalarType dtype = want.scalar_type();
  const double unit = dtype == at::kFloat      ? 0x1p-23
                      : dtype == at::kDouble   ? 0x1p-52
                      : dtype == at::kBFloat16 ? 0x1p-7
                                               : 0;
  const at::Tensor difference = (got.cpu().to(at::kDouble) - want.to(at::kDouble)).abs();
  EXPECT_LE(difference.max().item<double>(), unit * 4 * 50000);
}

void check_all_reduce(comm::Group& group, const Where& where) {
  int salt = 0;
  for (const at::ScalarType dtype : kSummed) {
    for (const std::int64_t numel : kSizes) {
      SCOPED_TRACE(fmt::format("{} {}", at::toString(dtype), numel));
      ++salt;
      const auto input = [&](int r) { return input_of(r, numel, dtype, salt); };
      const at::Tensor x = input(group.rank()).to(where.device);
      group.all_reduce(x).wait();
      expect_sum(x, ordered_sum(group.size(), input), where);

      at::Tensor largest = input(0);
      for (int r = 1; r < group.size(); ++r) largest = at::maximum(largest, input(r));
      const at::Tensor y = input(group.rank()).to(where.device);
      group.all_reduce(y, comm::Reduce::kMax).wait();
      expect_equal(y, largest);
    }
  }
}

void check_gathers(comm::Group& group, const Where& where, at::ScalarType dtype, std::int64_t numel, int salt) {
  const int n = group.size(), me = group.rank(), root = salt % n;
  const at::TensorOptions there = at::TensorOptions(dtype).device(where.device);
  const auto part = [&](int r) { return input_of(r, numel, dtype, salt); };
  const auto whole = [&](int r) { return input_of(r, numel * n, dtype, salt + 1000); };

  std::vector<at::Tensor> parts, columns;
  for (int r = 0; r < n; ++r) parts.push_back(part(r));
  const at::Tensor gathered = at::empty({n * numel}, there);
  group.all_gather(gathered, part(me).to(where.device)).wait();
  expect_equal(gathered, at::cat(parts));
  const at::Tensor in_place = at::zeros({n * numel}, there);
  const at::Tensor mine = in_place.narrow(0, me * numel, numel);
  mine.copy_(part(me));
  group.all_gather(in_place, mine).wait();
  expect_equal(in_place, at::cat(parts));

  const at::Tensor exchanged = at::empty({n * numel}, there);
  group.all_to_all(exchanged, whole(me).to(where.device)).wait();
  for (int r = 0; r < n; ++r) columns.push_back(whole(r).narrow(0, me * numel, numel));
  expect_equal(exchanged, at::cat(columns));

  const at::Tensor sent = root == me ? part(root).to(where.device) : at::zeros({numel}, there);
  group.broadcast(sent, root).wait();
  expect_equal(sent, part(root));
}

void check_reduce_scatter(comm::Group& group, const Where& where, at::ScalarType dtype, std::int64_t numel, int salt) {
  const int n = group.size(), me = group.rank();
  const auto whole = [&](int r) { return input_of(r, numel * n, dtype, salt + 2000); };
  const at::Tensor sum = ordered_sum(n, [&](int r) { return whole(r).narrow(0, me * numel, numel); });
  const at::Tensor shard = at::empty({numel}, at::TensorOptions(dtype).device(where.device));
  group.reduce_scatter(shard, whole(me).to(where.device)).wait();
  expect_sum(shard, sum, where);
  const at::Tensor bucket = whole(me).to(where.device), mine = bucket.narrow(0, me * numel, numel);
  group.reduce_scatter(mine, bucket).wait();
  expect_sum(mine, sum, where);
}

void check_parts(comm::Group& group, const Where& where) {
  int salt = 100;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kByte}) {
    for (const std::int64_t numel : kSizes) {
      SCOPED_TRACE(fmt::format("{} {}", at::toString(dtype), numel));
      ++salt;
      check_gathers(group, where, dtype, numel, salt);
      if (dtype != at::kByte) check_reduce_scatter(group, where, dtype, numel, salt);
    }
  }
}

// A ring in one direction: to the rank `step` further, from the one `step` before. Every rank's piece has another size.
void check_ring(comm::Group& group, const Where& where, int step, std::int64_t numel) {
  const int n = group.size(), me = group.rank();
  const int to = (me + step + n) % n, from = (me - step + n) % n;
  const auto piece = [&](int r) { return input_of(r, numel == 0 ? 0 : numel + 7 * r, at::kFloat, 500); };
  const at::Tensor received = at::empty(piece(from).sizes(), at::TensorOptions(at::kFloat).device(where.device));
  group.exchange({{to, piece(me).to(where.device)}}, {{from, received}}).wait();
  expect_equal(received, piece(from));
}

void check_exchange(comm::Group& group, const Where& where) {
  for (const std::int64_t numel : {0, 1, 1000, 300000}) {
    check_ring(group, where, 1, numel);
    check_ring(group, where, -1, numel);
  }
  check_exchange_of_all(group, where);
  // Only the first and the last rank; then all meet.
  const int last = group.size() - 1;
  const at::Tensor x = input_of(0, 200000, at::kDouble, 700), y = at::zeros_like(x).to(where.device);
  if (group.rank() == 0) group.exchange({{last, x.to(where.device)}}, {}).wait();
  if (group.rank() == last) {
    group.exchange({}, {{0, y}}).wait();
    expect_equal(y, x);
  }
  group.exchange({}, {}).wait();
  group.barrier();
}

// Operations run beside each other and beside other work, whose memory comes and goes; each is waited for only where
// its result is needed.
void check_overlap(comm::Group& group, const Where& where) {
  constexpr std::int64_t kNumel = 100000;
  const int n = group.size(), me = group.rank();
  std::vector<at::Tensor> shards, wholes;
  std::vector<comm::Work> work;
  const auto input = [&](int r, int i) { return input_of(r, n * kNumel, at::kFloat, 800 + i); };
  for (int i = 0; i < 8; ++i) {
    shards.push_back(at::empty({kNumel}, at::TensorOptions(at::kFloat).device(where.device)));
    work.push_back(group.reduce_scatter(shards.back(), input(me, i).to(where.device)));  // its input is dropped
    const at::Tensor other = at::full({n * kNumel}, -1.0F, shards.back().options());     // and perhaps taken again
    wholes.push_back(other);
  }
  for (std::size_t i = 0; i < work.size(); ++i) {
    work[i].wait();
    shards[i].mul_(2);
    group.all_gather(wholes[i], shards[i]);  // without a wait for this one: the next barrier's stream order follows it
    group.barrier();
    const at::Tensor sum = ordered_sum(n, [&](int r) { return input(r, static_cast<int>(i)); });
    expect_sum(wholes[i], sum.mul(2), where);
  }
}

}  // namespace

void check_exchange_of_all(comm::Group& group, const Where& where) {
  const int n = group.size(), me = group.rank();
  const std::vector<std::int64_t> sizes = {5, 0, 70001, 1, 300000};
  const auto piece = [&](int from, int to, std::size_t number) {
    return input_of(from, sizes[(number + static_cast<std::size_t>(from + to)) % sizes.size()], at::kBFloat16,
                    600 + 10 * to + static_cast<int>(number));
  };
  std::vector<comm::Transfer> sends, receives;
  for (std::size_t number = 0; number < sizes.size(); ++number) {
    for (int peer = n - 1; peer >= 0; --peer) {
      if (peer == me) continue;
      sends.push_back({peer, piece(me, peer, number).to(where.device)});
      receives.push_back({peer, at::zeros_like(piece(peer, me, number)).to(where.device)});
    }
  }
  group.exchange(sends, receives).wait();
  std::vector<std::size_t> next(static_cast<std::size_t>(n));
  for (const comm::Transfer& received : receives) {
    const std::size_t number = next[static_cast<std::size_t>(received.peer)]++;
    expect_equal(received.tensor, piece(received.peer, me, number));
  }
}

void check_every_operation(comm::Group& group, const Where& where) {
  check_all_reduce(group, where);
  check_parts(group, where);
  check_exchange(group, where);
  check_overlap(group, where);
  if (!where.has_ordered_sums) return;
  // A NaN anywhere is seen everywhere.
  const at::Tensor nan = at::zeros({3});
  if (group.rank() == group.size() - 1) nan[1] = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor there = nan.to(where.device);
  group.all_reduce(there, comm::Reduce::kMax).wait();
  EXPECT_TRUE(at::equal(there.cpu().isnan(), at::arange(3).eq(1)));
}

}  // namespace dfm::test
