#include "dfm/diffusion/sampler.h"

#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "dfm/base/error.h"

namespace dfm::diffusion {
namespace {

at::Tensor denoise(const Denoiser& denoiser, const at::Tensor& x, double sigma) {
  return denoiser(x, sigma).to(at::kDouble);
}

// The step of DPM-Solver++ from `sigma` to `next` with the denoised estimate held at `denoised`. With next = 0 it is
// the estimate itself.
at::Tensor exponential_step(const at::Tensor& x, const at::Tensor& denoised, double sigma, double next) {
  const double ratio = next / sigma;
  return ratio * x + (1.0 - ratio) * denoised;
}

}  // namespace

std::vector<double> sigma_schedule(std::int64_t num_steps, double sigma_max, double sigma_min, double rho) {
  if (num_steps < 1) throw ConfigError("num_steps: got {}, want a value >= 1", num_steps);
  const double top = std::pow(sigma_max, 1.0 / rho);
  const double bottom = std::pow(sigma_min, 1.0 / rho);
  std::vector<double> sigmas;
  for (std::int64_t i = 0; i < num_steps; ++i) {
    const double share = num_steps > 1 ? static_cast<double>(i) / static_cast<double>(num_steps - 1) : 0.0;
    sigmas.push_back(std::pow(top + share * (bottom - top), rho));
  }
  sigmas.push_back(0.0);
  return sigmas;
}

at::Tensor guide(const at::Tensor& conditional, const at::Tensor& unconditional, double guidance) {
  return conditional + guidance * (conditional - unconditional);
}

Denoiser guided(Denoiser conditional, Denoiser unconditional, double guidance) {
  if (guidance == 0.0) return conditional;
  return [conditional = std::move(conditional), unconditional = std::move(unconditional), guidance](const at::Tensor& x,
                                                                                                    double sigma) {
    const at::Tensor c = denoise(conditional, x, sigma);
    return guide(c, denoise(unconditional, x, sigma), guidance);
  };
}

at::Tensor sample(const Denoiser& denoiser, const at::Tensor& epsilon, const SampleOptions& options) {
  const at::NoGradGuard no_grad;
  const std::vector<double> sigmas = sigma_schedule(options.num_steps);
  at::Tensor x = epsilon.to(at::kDouble) * sigmas[0];
  at::Tensor previous;  // dpmpp_2m: the estimate of the step before
  for (std::size_t i = 0; i + 1 < sigmas.size(); ++i) {
    const double sigma = sigmas[i];
    const double next = sigmas[i + 1];
    const at::Tensor denoised = denoise(denoiser, x, sigma);
    at::Tensor estimate = denoised;
    // 2M, midpoint form (Lu et al., arXiv 2211.01095, algorithm 2): the estimate is extrapolated to the middle of the
    // step in lambda = -ln sigma from the last two. Nothing to extrapolate from at first; at sigma = 0 lambda is
    // infinite. edm_euler is the same step without it: x + (next - sigma) (x - D) / sigma.
    if (options.sampler == Sampler::kDpmpp2m && previous.defined() && next > 0) {
      const double h = std::log(sigma / next);
      const double h_before = std::log(sigmas[i - 1] / sigma);
      estimate = denoised + h / (2 * h_before) * (denoised - previous);
    }
    x = exponential_step(x, estimate, sigma, next);
    previous = denoised;
    if (options.on_step) options.on_step(static_cast<std::int64_t>(i), options.num_steps, x);
  }
  return x;
}

}  // namespace dfm::diffusion
