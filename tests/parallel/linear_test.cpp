#include "dfm/parallel/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "dfm/comm/world.h"
#include "dfm/parallel/regions.h"
#include "parallel/require.h"
#include "parallel/test_groups.h"
#include "support/ranks.h"

namespace dfm::parallel {
namespace {

using test::random_rows;
using test::require;
using test::require_close;

TEST(ParallelLinear, IsAnOrdinaryLinearOnAGroupOfOne) {
  const at::Tensor x = at::randn({5, 4}), weight = at::randn({6, 4}), want = at::linear(x, weight);
  EXPECT_TRUE(at::equal(ColumnParallelLinear({}, weight).forward(x), want));
  EXPECT_TRUE(at::equal(ColumnParallelLinear({}, weight).forward_whole(x), want));
  EXPECT_TRUE(at::equal(RowParallelLinear({}, weight).forward(x), want));
}

at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(true); }

struct Dimensions {
  std::int64_t rows, in, inner, out;
};

// y = W2 gelu(W1 x), against the whole matrices on one rank.
void check_pair(const comm::GroupPtr& group, bool sequence, at::ScalarType dtype, double tolerance) {
  const std::int64_t size = group->size(), rank = group->rank();
  const Dimensions n{4 * size, 6, 3 * size, 5};
  const at::Tensor x = leaf(random_rows({n.rows, n.in}, 1).to(dtype)),
                   w1 = leaf(random_rows({n.inner, n.in}, 2).to(dtype)),
                   w2 = leaf(random_rows({n.out, n.inner}, 3).to(dtype)),
                   cotangent = random_rows({n.rows, n.out}, 4).to(dtype);
  const at::Tensor want = at::linear(at::gelu(at::linear(x, w1)), w2);
  const auto want_grads = torch::autograd::grad({want}, {x, w1, w2}, {cotangent});

  const auto tokens = [&](const at::Tensor& all) {
    return sequence ? all.chunk(size)[static_cast<std::size_t>(rank)] : all;
  };
  const auto share = [&](const at::Tensor& all, std::int64_t dim) {
    return all.chunk(size, dim)[static_cast<std::size_t>(rank)];
  };
  const Parallel parallel{.tensor = group, .sequence = sequence};
  const at::Tensor my_x = leaf(tokens(x)), my_w1 = leaf(share(w1, 0)), my_w2 = leaf(share(w2, 1));
  const ColumnParallelLinear fc1(parallel, my_w1);
  const RowParallelLinear fc2(parallel, my_w2);
  const at::Tensor y = fc2.forward(at::gelu(fc1.forward(my_x)));
  const auto grads = torch::autograd::grad({y}, {my_x, my_w1, my_w2}, {tokens(cotangent)});
  const std::string name = fmt::format("{} ranks, sequence {}: ", size, sequence);
  require_close(name + "y", y, tokens(want), tolerance);
  require_close(name + "gradient of x", grads[0], tokens(want_grads[0]), tolerance);
  require_close(name + "gradient of the column weight", grads[1], share(want_grads[1], 0), tolerance);
  require_close(name + "gradient of the row weight", grads[2], share(want_grads[2], 1), tolerance);
}

void check_whole_input(const comm::GroupPtr& group, bool needs_gradient) {
  const auto counting = std::make_shared<test::CountingGroup>(group);
  const auto rank = static_cast<std::size_t>(group->rank());
  const Parallel parallel{.tensor = counting, .sequence = true};
  const at::Tensor weight = leaf(random_rows({2 * group->size(), 6}, 2)),
                   mine = leaf(weight.chunk(group->size())[rank]);
  const at::Tensor text = random_rows({7, 6}, 1).requires_grad_(needs_gradient);
  const at::Tensor cotangent = random_rows({7, 2 * group->size()}, 3);
  const at::Tensor y = ColumnParallelLinear(parallel, mine).forward_whole(text), want = at::linear(text, weight);
  const std::vector<at::Tensor> inputs = needs_gradient ? std::vector{mine, text} : std::vector{mine};
  const auto grads = torch::autograd::grad({y}, inputs, {cotangent.chunk(group->size(), 1)[rank]});
  const auto want_grads =
      torch::autograd::grad({want}, needs_gradient ? std::vector{weight, text} : std::vector{weight}, {cotangent});
  require_close("y of text", y, want.chunk(group->size(), 1)[rank], 1e-13);
  require_close("weight's gradient from text", grads[0], want_grads[0].chunk(group->size())[rank], 1e-13);
  if (needs_gradient) require_close("gradient of text", grads[1], want_grads[1], 1e-13);
  require(counting->calls == (needs_gradient ? 1 : 0), fmt::format("text: got {} calls", counting->calls));
}

RANK_CASE(parallel_linears) {
  for (const bool sequence : {false, true}) {
    check_pair(world.all(), sequence, at::kDouble, 1e-12);
    check_pair(world.all(), sequence, at::kFloat, 1e-5);
  }
  check_whole_input(world.all(), false);
  check_whole_input(world.all(), true);
}

TEST(ParallelLinear, EqualsTheWholeMatricesOverRanks) {
  for (const int ranks : {2, 4}) test::run_ranks(ranks, "parallel_linears");
}

}  // namespace
}  // namespace dfm::parallel
