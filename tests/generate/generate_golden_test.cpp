// The DiT under the sampler against the original software: ten steps, guidance 7, unconditional = no text rows.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/torch_file.h"
#include "generate/denoiser.h"
#include "generate/weights.h"
#include "support/files.h"
#include "support/tolerance.h"

namespace dfm::generate {
namespace {

class SampleGolden : public testing::TestWithParam<at::ScalarType> {};

TEST_P(SampleGolden, FollowsTheTrajectoryOfTheOriginalModelAndSampler) {
  const auto folder = test::golden_dir();
  if (!folder) GTEST_SKIP() << "set DFM_GOLDEN_DIR to the folder of golden numbers";
  const std::filesystem::path weights = *folder / "dfm" / "model.pt";
  const checkpoint::TensorFile file(weights);
  models::Dit dit(infer_config(file.entries(), weights.string()), GetParam(), at::kCPU, 0);
  dit.load(file.read_all(), weights.string());

  std::map<std::string, at::Tensor> golden;
  for (auto& [name, tensor] : formats::named_tensors(formats::load_torch_file(*folder / "dfm" / "single.pt"))) {
    golden[name] = tensor;
  }
  const at::Tensor& latent = golden.at("latent.0");
  const models::LatentShape shape{
      .channels = latent.size(0), .frames = latent.size(1), .height = latent.size(2), .width = latent.size(3)};
  const at::Tensor& text = golden.at("text.0");
  const diffusion::Denoiser denoiser =
      diffusion::guided(dit_denoiser(dit, shape, text, 30), dit_denoiser(dit, shape, text.narrow(0, 0, 0), 30), 7.0);

  // The reference is float64 stored as float32; ten steps with guidance 7 multiply the error of one forward.
  const double tolerance = 1e-5;
  const at::Tensor& states = golden.at("sample10.states");
  const std::int64_t num_steps = states.size(0) - 1;
  const auto check = [&](std::int64_t step, std::int64_t, const at::Tensor& x) {
    EXPECT_LT(test::relative_error(x, states[step + 1]), tolerance) << "after step " << step;
  };
  diffusion::sample(denoiser, states[0] / 80.0, {.num_steps = num_steps, .on_step = check});
}

INSTANTIATE_TEST_SUITE_P(Precisions, SampleGolden, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& test) { return test.param == at::kFloat ? "fp32" : "fp64"; });

}  // namespace
}  // namespace dfm::generate
