#include "dfm/parallel/regions.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "dfm/comm/world.h"
#include "parallel/require.h"
#include "parallel/test_groups.h"
#include "support/ranks.h"

namespace dfm::parallel {
namespace {

using test::random_rows;
using test::require;
using test::require_close;

TEST(TensorRegions, AreTheIdentityOnAGroupOfOne) {
  const at::Tensor x = at::randn({5, 4}).requires_grad_(true);
  for (const bool sequence : {false, true}) {
    const Parallel parallel{.sequence = sequence};
    EXPECT_TRUE(enter_tensor_region(x, parallel).is_same(x));
    EXPECT_TRUE(enter_tensor_region_whole(x, parallel).is_same(x));
    EXPECT_TRUE(leave_tensor_region(x, parallel).is_same(x));
  }
}

// Rank r multiplies by r + 1 between the two: y = x sum(r + 1).
void check_regions(comm::World& world) {
  const comm::GroupPtr group = world.all();
  const std::int64_t size = group->size(), rank = group->rank(), rows = 3 * size;
  const double sum = static_cast<double>(size * (size + 1)) / 2;
  const at::Tensor whole = random_rows({rows, 4}, 1), cotangent = random_rows({rows, 4}, 2);
  for (const bool sequence : {false, true}) {
    const Parallel parallel{.tensor = group, .sequence = sequence};
    const auto part = [&](const at::Tensor& x) { return sequence ? x.narrow(0, rank * 3, 3) : x; };
    const at::Tensor x = part(whole).clone().requires_grad_(true);
    const at::Tensor inside = enter_tensor_region(x, parallel);
    require_close("inside", inside, whole, 0);
    const at::Tensor y = leave_tensor_region(inside * (static_cast<double>(rank) + 1), parallel);
    require_close("y", y, part(whole) * sum, 1e-14);
    require_close("gradient", torch::autograd::grad({y}, {x}, {part(cotangent)})[0], part(cotangent) * sum, 1e-14);
  }
}

// Whole on all ranks even with sequence parallelism: each rank's gradient is a share of a sum.
void check_whole_inputs(comm::World& world) {
  const auto group = std::make_shared<test::CountingGroup>(world.all());
  const Parallel parallel{.tensor = group, .sequence = true};
  const at::Tensor x = random_rows({5, 4}, 1).requires_grad_(true), cotangent = random_rows({5, 4}, 2);
  const at::Tensor y = enter_tensor_region_whole(x, parallel);
  require_close("y", y, x, 0);
  require(group->calls == 0, "entering costs a call");
  const at::Tensor mine = cotangent * (static_cast<double>(group->rank()) + 1);
  const double sum = static_cast<double>(group->size() * (group->size() + 1)) / 2;
  require_close("gradient", torch::autograd::grad({y}, {x}, {mine})[0], cotangent * sum, 1e-14);
  require_close("cotangent, which is left as it is", mine, cotangent * (static_cast<double>(group->rank()) + 1), 0);
  require(group->calls == 1, "backward should be one call");
  require(!enter_tensor_region_whole(x.detach(), parallel).requires_grad(), "a gradient that nobody needs");
}

RANK_CASE(tensor_regions) {
  check_regions(world);
  check_whole_inputs(world);
}

TEST(TensorRegions, ChangeValuesAndGradientsBetweenRanks) {
  for (const int ranks : {2, 3}) test::run_ranks(ranks, "tensor_regions");
}

}  // namespace
}  // namespace dfm::parallel
