// The Cosmos tokenizer and its kernels on a GPU against the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/ops/device.h"
#include "dfm/ops/frame_norm.h"
#include "models/cosmos_tokenizer/random_weights.h"
#include "models/cosmos_tokenizer/tokenizer.h"
#include "support/tolerance.h"

namespace dfm::models::cosmos {
namespace {

using test::relative_error;

class CosmosGpuTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { device_ = ops::select_device("auto", 0); }
  void SetUp() override {
    if (!device_.is_cuda()) GTEST_SKIP() << "skipped: no GPU";
    ASSERT_TRUE(ops::has_cuda_kernels());
  }
  static inline at::Device device_ = at::kCPU;
};

TEST_F(CosmosGpuTest, FrameNormEqualsTheCpu) {
  at::manual_seed(1);
  for (const std::int64_t channels : {16, 24, 5, 256}) {
    const at::Tensor whole = at::randn({3, 20, 33, channels}) * 2 + 1, weight = at::randn(channels),
                     shift = at::randn(channels), bias = at::randn(channels);
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 1e-2}}) {
      for (const at::Tensor& extra : {at::Tensor(), bias}) {
        const auto on_gpu = [&](const at::Tensor& x) { return x.defined() ? x.to(device_) : x; };
        const at::Tensor x = whole.to(dtype), rows = x.narrow(1, 4, 9), gpu_x = x.to(device_);
        const ops::FrameMoments want = ops::frame_moments(x, extra, 1e-6);
        const ops::FrameMoments got = ops::frame_moments(gpu_x, on_gpu(extra), 1e-6);
        EXPECT_LT(relative_error(got.mean_F, want.mean_F), 1e-4);
        EXPECT_LT(relative_error(got.rstd_F, want.rstd_F), 1e-4);
        const at::Tensor out =
            ops::frame_normalise(gpu_x.narrow(1, 4, 9), got, on_gpu(weight), on_gpu(shift), on_gpu(extra), true);
        EXPECT_LT(relative_error(out, ops::frame_normalise(rows, want, weight, shift, extra, true)), tolerance);
        const at::Tensor sum = x.clone(), gpu_sum = gpu_x.clone();
        ops::add_with_bias(sum.narrow(1, 4, 9), rows, extra);
        ops::add_with_bias(gpu_sum.narrow(1, 4, 9), gpu_x.narrow(1, 4, 9).contiguous(), on_gpu(extra));
        EXPECT_LT(relative_error(gpu_sum, sum), tolerance);
      }
    }
  }
}

TEST_F(CosmosGpuTest, TokenizerEqualsTheCpu) {
  for (const std::int64_t temporal : {4, 8}) {
    Config config;
    config.temporal_compression = temporal;
    config.encoder_widths = {16, 32, 64};
    config.decoder_widths = {32, 64, 64};
    if (temporal == 8) {
      config.encoder_widths.push_back(64);
      config.decoder_widths.push_back(64);
    }
    const NamedTensors weights = random_weights(config, 3, false);
    at::manual_seed(2);
    const at::Tensor pixels = at::rand({2, 3, 1 + 3 * temporal, 96, 64}) * 2 - 1;
    const Tokenizer cpu("cpu", config, {}, weights, {}, "memory");
    const at::Tensor latent = cpu.encode_batch(pixels), decoded = cpu.decode(latent[0]);
    for (const auto& [precision, tolerance] : {std::pair{Precision::kFp32, 1e-4}, std::pair{Precision::kBf16, 6e-2}}) {
      EncoderOptions options;
      options.device = device_;
      options.precision = precision;
      Tokenizer gpu("gpu", config, {}, weights, options, "memory");
      for (const Cuts& cuts : {Cuts{}, Cuts{.latent_frames = 1}, Cuts{.latent_frames = 2, .strip_bytes = 20000}}) {
        gpu.set_cuts(cuts);
        EXPECT_LT(relative_error(gpu.encode_batch(pixels), latent), tolerance);
        EXPECT_LT(relative_error(gpu.encode(pixels[1].narrow(1, 0, 1)), cpu.encode(pixels[1].narrow(1, 0, 1))),
                  tolerance);
        EXPECT_LT(relative_error(gpu.decode(latent[0]), decoded), tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace dfm::models::cosmos
