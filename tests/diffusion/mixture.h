#pragma once
// The exact denoiser of a Gaussian mixture, which stands in for a model in sampler tests (golden/dfm/README.md).
#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

namespace dfm::test {

// Modes k: mean mu_KD, standard deviation std_K, log weight logit_K (up to a constant). Tokens are rows of x.
struct Mixture {
  at::Tensor mu_KD, std_K, logit_K;

  [[nodiscard]] at::Tensor denoise(const at::Tensor& x_TD, double sigma) const {
    const double width = static_cast<double>(x_TD.size(1));
    const at::Tensor var_K = std_K.square() + sigma * sigma;
    const at::Tensor difference_TKD = x_TD.unsqueeze(1) - mu_KD;
    const at::Tensor score_TK =
        logit_K - difference_TKD.square().sum(2) / (2 * var_K) - width / 2 * (2 * std::numbers::pi * var_K).log();
    const at::Tensor share_TK = score_TK.softmax(1);
    const at::Tensor mean_TKD = mu_KD + (std_K.square() / var_K).unsqueeze(1) * difference_TKD;
    return (share_TK.unsqueeze(2) * mean_TKD).sum(1);
  }
};

}  // namespace dfm::test
