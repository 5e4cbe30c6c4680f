#pragma once
// EDM (Karras et al., arXiv 2206.00364, table 1), per segment. Legend: T tokens, C channels, N segments.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "dfm/config/schema.h"

namespace dfm::diffusion {

inline constexpr double kSigmaData = 0.5;

// Section `diffusion`.
struct DiffusionConfig {
  double p_mean = 0.0;
  double p_std = 1.0;
  double text_dropout = 0.2;
  static constexpr auto fields() {
    using config::field;
    return config::fields<DiffusionConfig>(
        field("p_mean", &DiffusionConfig::p_mean, "Mean of ln(sigma) in training"),
        field("p_std", &DiffusionConfig::p_std, "Standard deviation of ln(sigma) in training", config::positive),
        field("text_dropout", &DiffusionConfig::text_dropout, "Share of samples trained without their text",
              config::unit_interval));
  }
};

struct Preconditioning {
  double c_skip, c_out, c_in, c_noise, loss_weight;
};
Preconditioning precondition(double sigma, double sigma_data = kSigmaData);

// The sample's noise level and whether its text is dropped: functions of (seed, position in the stream) alone.
double draw_sigma(std::uint64_t seed, std::uint64_t position, const DiffusionConfig& config);
bool draw_text_dropout(std::uint64_t seed, std::uint64_t position, const DiffusionConfig& config);
// A noised row and what the loss needs. x0 is sigma_data * tokens (latents already normalised to the model's scale).
struct NoisedRow {
  at::Tensor x_in_TC;  // c_in * x_t, float32 (float64 in fp64 runs); padding rows zero
  at::Tensor x_t_TC;
  at::Tensor c_noise_N;
};
// offsets: the segments' offsets (N + 1 values); x0 and epsilon [T, C]; sigmas N values.
NoisedRow add_noise(const at::Tensor& x0_TC, const at::Tensor& epsilon_TC, const std::vector<double>& sigmas,
                    const std::vector<std::int64_t>& offsets);

// Sum over real tokens of mean over channels of weight * (x0 - D)^2, with D = c_skip x_t + c_out F; differentiable in
// F. Computed in the dtype of x_t (float32; float64 in fp64 runs) whatever F's dtype. `segment_losses_N` (optional)
// receives the sum of each segment, without gradient.
at::Tensor edm_loss_sum(const at::Tensor& f_TC, const NoisedRow& row, const at::Tensor& x0_TC,
                        const std::vector<double>& sigmas, const std::vector<std::int64_t>& offsets,
                        at::Tensor* segment_losses_N = nullptr);

}  // namespace dfm::diffusion
