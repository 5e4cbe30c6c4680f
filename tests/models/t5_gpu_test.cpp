// T5's encoder on a GPU against the CPU: padded and unpadded attention, weights that stay and weights that are
// streamed.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "dfm/ops/device.h"
#include "models/t5/t5_network.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

using test::relative_error;

class T5GpuTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { device_ = ops::select_device("auto", 0); }
  void SetUp() override {
    if (!device_.is_cuda()) GTEST_SKIP() << "skipped: no GPU";
  }
  static inline at::Device device_ = at::kCPU;
};

TEST_F(T5GpuTest, EqualsTheCpu) {
  std::vector<std::vector<std::int32_t>> captions;
  for (const std::int32_t length : {5, 1, 7, 512, 5, 6, 6, 33, 2, 5, 130, 16, 17}) {
    captions.emplace_back();
    for (std::int32_t i = 0; i < length; ++i) captions.back().push_back((i * 37 + length) % 990);
  }
  for (const bool gated : {false, true}) {
    T5Config config{.vocab_size = 1000, .d_model = 96, .d_kv = 64, .d_ff = 320, .num_layers = 5, .num_heads = 6};
    config.gated = gated;
    if (gated) config.activation = T5Activation::kGeluTanh;
    at::manual_seed(5);
    const auto random = random_t5_tensors(config, at::kCPU, at::kFloat);
    std::map<std::string, at::Tensor> tensors;
    for (const T5Parameter& parameter : t5_parameters(config)) tensors[parameter.name] = random(parameter.name);
    const auto read = [&](const std::string& name) { return tensors.at(name); };
    const auto want = T5Network(load_t5_weights(config, read, at::kCPU, at::kFloat, false)).encode(captions);
    for (const bool offload : {false, true}) {
      for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 3e-2}}) {
        const T5Network network(load_t5_weights(config, read, device_, dtype, offload));
        for (int again = 0; again < 2; ++again) {
          const auto got = network.encode(captions);
          for (std::size_t i = 0; i < captions.size(); ++i) {
            EXPECT_EQ(got[i].device(), device_);
            EXPECT_LT(relative_error(got[i], want[i]), tolerance)
                << "caption " << i << ", gated " << gated << ", offload " << offload << ", " << dtype;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace dfm::models
