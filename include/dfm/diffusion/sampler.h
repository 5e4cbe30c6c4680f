#pragma once
// Samplers for EDM: they take a denoiser and know neither models nor ranks. State in float64.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dfm/config/schema.h"

namespace dfm::diffusion {

enum class Sampler { kEdmEuler, kDpmpp2m };
constexpr auto enum_names(Sampler) {
  return std::array{std::pair{Sampler::kEdmEuler, "edm_euler"}, std::pair{Sampler::kDpmpp2m, "dpmpp_2m"}};
}

// D(x, sigma): the denoised estimate, same shape as x.
using Denoiser = std::function<at::Tensor(const at::Tensor& x, double sigma)>;

// num_steps + 1 noise levels from sigma_max down, rho 7, then 0.
std::vector<double> sigma_schedule(std::int64_t num_steps, double sigma_max = 80.0, double sigma_min = 0.002,
                                   double rho = 7.0);

// c + g (c - u), of two estimates and of two denoisers.
at::Tensor guide(const at::Tensor& conditional, const at::Tensor& unconditional, double guidance);
Denoiser guided(Denoiser conditional, Denoiser unconditional, double guidance);

struct SampleOptions {
  Sampler sampler = Sampler::kEdmEuler;
  std::int64_t num_steps = 35;
  // Called after each step with (step, number of steps, state).
  std::function<void(std::int64_t, std::int64_t, const at::Tensor&)> on_step;
};
// epsilon: standard normal noise, any shape. The result in float64.
at::Tensor sample(const Denoiser& denoiser, const at::Tensor& epsilon, const SampleOptions& options);

}  // namespace dfm::diffusion
