#include "dfm/parallel/linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/parallel/regions.h"
#include "support/errors.h"

namespace dfm::parallel {
namespace {

TEST(ParallelLinear, IsAnOrdinaryLinearOnAGroupOfOne) {
  const at::Tensor x = at::randn({5, 4}), weight = at::randn({6, 4}), bias = at::randn({6});
  const at::Tensor want = at::linear(x, weight, bias);
  EXPECT_TRUE(at::equal(ColumnParallelLinear({}, weight, bias).forward(x), want));
  EXPECT_TRUE(at::allclose(RowParallelLinear({}, weight, bias).forward(x), want));
  EXPECT_TRUE(at::equal(RowParallelLinear({}, weight, {}).forward(x), at::linear(x, weight)));
}

TEST(ParallelRegions, AreTheIdentityOnAGroupOfOneAndRefuseOthers) {
  const at::Tensor x = at::randn({5, 4});
  EXPECT_TRUE(enter_tensor_region(x, {}).is_same(x));
  EXPECT_TRUE(leave_tensor_region(x, {}).is_same(x));
  const Parallel two{.tensor = {.rank = 0, .size = 2}};
  EXPECT_DFM_ERROR(ExitCode::kConfig, "tensor parallelism: got 2 ranks, want 1", enter_tensor_region(x, two));
}

}  // namespace
}  // namespace dfm::parallel
