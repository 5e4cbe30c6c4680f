#include "dfm/ops/philox_normal.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "support/errors.h"

namespace dfm::ops {
namespace {

TEST(PhiloxNormalTensor, EqualsTheBaseLayersNumbersFromAnyElementAndThreadCount) {
  std::vector<float> want(20001);
  philox_normal(42, 17, Purpose::kNoise, 3, want);
  const int threads = at::get_num_threads();
  for (const int count : {1, 3}) {
    at::set_num_threads(count);
    at::Tensor out = at::empty({20001});
    philox_normal_(out, 42, 17, Purpose::kNoise, 3);
    EXPECT_TRUE(at::equal(out, at::tensor(want)));
  }
  at::set_num_threads(threads);
}

TEST(PhiloxNormalTensor, RefusesOtherTensors) {
  at::Tensor wrong = at::empty({4}, at::kDouble);
  EXPECT_DFM_ERROR(ExitCode::kInternal, "want a contiguous float tensor",
                   (philox_normal_(wrong, 1, 1, Purpose::kNoise), 0));
}

}  // namespace
}  // namespace dfm::ops
