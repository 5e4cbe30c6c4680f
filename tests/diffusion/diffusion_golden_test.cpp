// EDM against the numbers of the original software (golden/dfm/edm.pt, float64, an analytic mixture as denoiser).
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "dfm/base/error.h"
#include "dfm/diffusion/edm.h"
#include "dfm/diffusion/sampler.h"
#include "dfm/formats/torch_file.h"
#include "diffusion/mixture.h"
#include "support/files.h"
#include "support/tolerance.h"

namespace dfm::diffusion {
namespace {

const double kTolerance = test::tolerance(at::kDouble).forward;

class EdmGolden : public testing::Test {
 protected:
  void SetUp() override {
    const auto folder = test::golden_dir();
    if (!folder) GTEST_SKIP() << "set DFM_GOLDEN_DIR to the folder of golden numbers";
    for (auto& [name, tensor] : formats::named_tensors(formats::load_torch_file(*folder / "dfm" / "edm.pt"))) {
      tensors_[name] = tensor;
    }
  }

  [[nodiscard]] const at::Tensor& get(const std::string& name) const { return tensors_.at(name); }
  [[nodiscard]] std::vector<double> values(const std::string& name) const {
    const at::Tensor tensor = get(name).to(at::kDouble).contiguous();
    return {tensor.const_data_ptr<double>(), tensor.const_data_ptr<double>() + tensor.numel()};
  }

  // The mixture given the mean of text rows; without text its logits are `a` alone.
  [[nodiscard]] test::Mixture mixture(bool with_text) const {
    at::Tensor logits = get("mixture.a");
    if (with_text) logits = logits + get("text").squeeze(0).mean(0).matmul(get("mixture.V"));
    return {.mu_KD = get("mixture.mu"), .std_K = get("mixture.std"), .logit_K = logits};
  }

  void expect_trajectory(const std::string& name, double guidance) const {
    const at::Tensor& states = get(name + ".states");
    const at::Tensor& denoised = get(name + ".denoised");
    const std::int64_t num_steps = denoised.size(0);
    const std::vector<double> schedule = sigma_schedule(num_steps);
    EXPECT_LT(test::relative_error(at::tensor(schedule, at::kDouble), get(name + ".sigma")), kTolerance);

    const auto denoiser_of = [](const test::Mixture& modes) -> Denoiser {
      return [modes](const at::Tensor& x, double sigma) { return modes.denoise(x, sigma); };
    };
    const Denoiser denoiser = guided(denoiser_of(mixture(true)), denoiser_of(mixture(false)), guidance);
    std::int64_t call = 0;
    const auto watched = [&](const at::Tensor& x, double sigma) {
      EXPECT_LT(test::relative_error(x, states[call]), kTolerance) << name << " state before step " << call;
      at::Tensor estimate = denoiser(x, sigma);
      EXPECT_LT(test::relative_error(estimate, denoised[call]), kTolerance) << name << " estimate of step " << call;
      ++call;
      return estimate;
    };
    const at::Tensor result =
        sample(watched, states[0] / schedule[0], {.sampler = Sampler::kEdmEuler, .num_steps = num_steps});
    EXPECT_LT(test::relative_error(result, states[num_steps]), kTolerance) << name;
    EXPECT_EQ(call, num_steps);
  }

  std::map<std::string, at::Tensor> tensors_;
};

TEST_F(EdmGolden, Preconditioning) {
  const std::vector<double> sigmas = values("scaling.sigma");
  const std::map<std::string, double Preconditioning::*> parts = {{"c_skip", &Preconditioning::c_skip},
                                                                  {"c_out", &Preconditioning::c_out},
                                                                  {"c_in", &Preconditioning::c_in},
                                                                  {"c_noise", &Preconditioning::c_noise},
                                                                  {"weight", &Preconditioning::loss_weight}};
  for (const auto& [name, member] : parts) {
    const std::vector<double> want = values("scaling." + name);
    for (std::size_t i = 0; i < sigmas.size(); ++i) {
      EXPECT_NEAR(precondition(sigmas[i]).*member, want[i], kTolerance * std::abs(want[i]) + 1e-15) << name;
    }
  }
}

// All sigmas of the file as segments of one row, in float64 and in float32.
TEST_F(EdmGolden, TrainingRow) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const double tolerance = test::tolerance(dtype).forward;
    const std::vector<double> sigmas = values("train.sigma");
    const auto num_sigmas = static_cast<std::int64_t>(sigmas.size());
    const at::Tensor video = get("train.video").flatten(0, -2);
    std::vector<std::int64_t> offsets{0};
    for (std::size_t i = 0; i < sigmas.size(); ++i) offsets.push_back(offsets.back() + video.size(0));
    const at::Tensor x0 = (kSigmaData * video).repeat({num_sigmas, 1}).to(dtype);
    const at::Tensor epsilon = get("train.epsilon").flatten(0, -2).repeat({num_sigmas, 1}).to(dtype);
    EXPECT_LT(test::relative_error(x0.narrow(0, 0, video.size(0)), get("train.x0").flatten(0, -2)), tolerance);

    const NoisedRow row = add_noise(x0, epsilon, sigmas, offsets);
    at::Tensor f = at::empty_like(row.x_t_TC);
    for (std::int64_t i = 0; i < num_sigmas; ++i) {
      // F from the denoised estimate of the file, so that the loss is the file's.
      const Preconditioning p = precondition(sigmas[static_cast<std::size_t>(i)]);
      const at::Tensor x_t = get("train.xt")[i].flatten(0, -2), x0_pred = get("train.x0_pred")[i].flatten(0, -2);
      const auto cut = [&](const at::Tensor& t) { return t.narrow(0, i * video.size(0), video.size(0)); };
      EXPECT_LT(test::relative_error(cut(row.x_t_TC), x_t), tolerance);
      EXPECT_LT(test::relative_error(cut(row.x_in_TC), p.c_in * x_t), tolerance);
      cut(f).copy_((x0_pred - p.c_skip * x_t) / p.c_out);
      EXPECT_LT(test::relative_error(mixture(true).denoise(x_t, sigmas[static_cast<std::size_t>(i)]), x0_pred), 1e-11);
    }
    at::Tensor segment_losses;
    const at::Tensor sum = edm_loss_sum(f, row, x0, sigmas, offsets, &segment_losses);
    EXPECT_LT(test::relative_error(sum, get("train.token_loss").sum()), tolerance);
    EXPECT_LT(test::relative_error(segment_losses / video.size(0), get("train.loss")), tolerance);
  }
}

TEST_F(EdmGolden, SamplerTrajectoryOf10Steps) { expect_trajectory("sample10", 7.0); }
TEST_F(EdmGolden, SamplerTrajectoryOf35Steps) { expect_trajectory("sample35", 7.0); }
TEST_F(EdmGolden, SamplerTrajectoryWithoutGuidance) { expect_trajectory("sample35_g0", 0.0); }

TEST_F(EdmGolden, Dpmpp2mIsMoreAccurateThanEulerOnTheMixture) {
  const test::Mixture modes = mixture(true);
  const auto denoiser = [&](const at::Tensor& x, double sigma) { return modes.denoise(x, sigma); };
  const at::Tensor epsilon = get("sample35_g0.states")[0] / 80.0;
  const auto run = [&](Sampler sampler, std::int64_t num_steps) {
    return sample(denoiser, epsilon, {.sampler = sampler, .num_steps = num_steps});
  };
  const at::Tensor reference = run(Sampler::kDpmpp2m, 400);
  for (const std::int64_t num_steps : {18, 35}) {
    EXPECT_LT(test::relative_error(run(Sampler::kDpmpp2m, num_steps), reference),
              0.5 * test::relative_error(run(Sampler::kEdmEuler, num_steps), reference));
  }
}

}  // namespace
}  // namespace dfm::diffusion
