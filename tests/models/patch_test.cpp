#include "dfm/models/patch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/errors.h"

namespace dfm::models {
namespace {

TEST(Patch, OrdersTokensByTimeRowColumnAndChannelsBySpatialThenTemporalThenLatentChannel) {
  const at::Tensor latent = at::arange(3 * 4 * 4 * 6, at::kFloat).view({3, 4, 4, 6});
  const at::Tensor tokens = patchify(latent, 2, 2);
  ASSERT_EQ(tokens.sizes(), (std::vector<std::int64_t>{2 * 2 * 3, 2 * 2 * 2 * 3}));
  for (std::int64_t t = 0, row = 0; t < 2; ++t) {
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t w = 0; w < 3; ++w, ++row) {
        for (std::int64_t channel = 0; channel < 24; ++channel) {
          const std::int64_t c = channel % 3, pt = channel / 3 % 2, pw = channel / 6 % 2, ph = channel / 12;
          EXPECT_EQ(tokens[row][channel].item<float>(), latent[c][2 * t + pt][2 * h + ph][2 * w + pw].item<float>());
        }
      }
    }
  }
}

TEST(Patch, UnpatchifyIsTheInverse) {
  const LatentShape shape{.channels = 16, .frames = 3, .height = 4, .width = 6};
  const at::Tensor latent = at::randn({16, 3, 4, 6});
  EXPECT_TRUE(at::equal(unpatchify(patchify(latent), shape), latent));
  EXPECT_EQ(patchify(latent).size(0), shape.num_tokens());
}

TEST(Patch, PositionsFollowTheTokens) {
  const at::Tensor positions = token_positions({.channels = 16, .frames = 2, .height = 4, .width = 6});
  ASSERT_EQ(positions.sizes(), (std::vector<std::int64_t>{12, 3}));
  EXPECT_TRUE(at::equal(positions[7], at::tensor({1, 0, 1}, at::kLong)));
  EXPECT_TRUE(at::equal(positions[11], at::tensor({1, 1, 2}, at::kLong)));
}

TEST(Patch, RefusesSidesThatDoNotDivide) {
  EXPECT_DFM_ERROR(ExitCode::kData, "latent: got 16x1x5x4", patchify(at::zeros({16, 1, 5, 4})));
}

}  // namespace
}  // namespace dfm::models
