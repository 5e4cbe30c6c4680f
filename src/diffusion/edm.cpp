#include "dfm/diffusion/edm.h"

#include <ATen/ATen.h>

#include <array>
#include <cmath>
#include <limits>

#include "dfm/base/error.h"
#include "dfm/base/philox.h"

namespace dfm::diffusion {
namespace {

void check_segments(std::size_t num_sigmas, const std::vector<std::int64_t>& offsets, std::int64_t rows) {
  if (offsets.size() != num_sigmas + 1 || offsets.front() != 0 || offsets.back() > rows) {
    throw InternalError("noised row: got {} sigmas, {} offsets ending in {}, want one sigma a segment within {} rows",
                        num_sigmas, offsets.size(), offsets.empty() ? 0 : offsets.back(), rows);
  }
}

// [S, 1]: for each real token the value that `coefficient` gives for its segment's sigma. Filled on the host, where
// the offsets are, so that nothing waits for the device.
template <typename Coefficient>
at::Tensor per_token(const std::vector<double>& sigmas, const std::vector<std::int64_t>& offsets,
                     const at::TensorOptions& options, Coefficient coefficient) {
  const at::Tensor values = at::empty({offsets.back(), 1}, at::kDouble);
  double* value = values.mutable_data_ptr<double>();
  for (std::size_t i = 0; i < sigmas.size(); ++i) {
    std::fill(value + offsets[i], value + offsets[i + 1], coefficient(precondition(sigmas[i])));
  }
  return values.to(options.dtype()).to(options.device());
}

}  // namespace

Preconditioning precondition(double sigma, double sigma_data) {
  const double total = sigma * sigma + sigma_data * sigma_data;
  const double root = std::sqrt(total);
  const double product = sigma * sigma_data;
  return {.c_skip = sigma_data * sigma_data / total,
          .c_out = product / root,
          .c_in = 1.0 / root,
          .c_noise = 0.25 * std::log(sigma),
          .loss_weight = total / (product * product)};
}

double draw_sigma(std::uint64_t seed, std::uint64_t position, const DiffusionConfig& config) {
  std::array<float, 1> normal{};
  philox_normal(seed, position, Purpose::kSigma, 0, normal);
  return std::exp(config.p_mean + config.p_std * static_cast<double>(normal[0]));
}

bool draw_text_dropout(std::uint64_t seed, std::uint64_t position, const DiffusionConfig& config) {
  return static_cast<double>(philox_uniform(seed, position, 0, Purpose::kTextDropout)) < config.text_dropout;
}

NoisedRow add_noise(const at::Tensor& x0_TC, const at::Tensor& epsilon_TC, const std::vector<double>& sigmas,
                    const std::vector<std::int64_t>& offsets) {
  check_segments(sigmas.size(), offsets, x0_TC.size(0));
  const at::ScalarType dtype = x0_TC.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::TensorOptions options = x0_TC.options().dtype(dtype);
  const std::int64_t num_tokens = offsets.back();
  const std::int64_t num_padding = x0_TC.size(0) - num_tokens;

  const at::Tensor x0_SC = x0_TC.narrow(0, 0, num_tokens).to(dtype);
  const at::Tensor epsilon_SC = epsilon_TC.narrow(0, 0, num_tokens).to(dtype);
  const at::Tensor sigma_S1 = at::empty({num_tokens, 1}, at::kDouble);
  double* sigma = sigma_S1.mutable_data_ptr<double>();
  for (std::size_t i = 0; i < sigmas.size(); ++i) std::fill(sigma + offsets[i], sigma + offsets[i + 1], sigmas[i]);
  const at::Tensor c_in_S1 = per_token(sigmas, offsets, options, [](const Preconditioning& p) { return p.c_in; });
  const at::Tensor x_t_SC = x0_SC + sigma_S1.to(dtype).to(options.device()) * epsilon_SC;

  std::vector<double> c_noise(sigmas.size());
  for (std::size_t i = 0; i < sigmas.size(); ++i) c_noise[i] = precondition(sigmas[i]).c_noise;
  NoisedRow row;
  row.x_t_TC = at::constant_pad_nd(x_t_SC, {0, 0, 0, num_padding});
  row.x_in_TC = at::constant_pad_nd(c_in_S1 * x_t_SC, {0, 0, 0, num_padding});
  row.c_noise_N = at::tensor(c_noise, at::kDouble).to(dtype).to(options.device());
  return row;
}

at::Tensor edm_loss_sum(const at::Tensor& f_TC, const NoisedRow& row, const at::Tensor& x0_TC,
                        const std::vector<double>& sigmas, const std::vector<std::int64_t>& offsets,
                        at::Tensor* segment_losses_N) {
  check_segments(sigmas.size(), offsets, f_TC.size(0));
  const at::TensorOptions options = row.x_t_TC.options();
  const std::int64_t num_tokens = offsets.back();
  const auto real = [&](const at::Tensor& tensor) { return tensor.narrow(0, 0, num_tokens).to(options.dtype()); };
  // The weight goes into the difference before it is squared: weight (x0 - D)^2 = (F_target - F)^2 with
  // F_target = (x0 - c_skip x_t) / c_out, because weight = 1 / c_out^2. One pass less over the row, and no large
  // weight times small difference at small sigma.
  const at::Tensor c_skip_S1 = per_token(sigmas, offsets, options, [](const Preconditioning& p) { return p.c_skip; });
  const at::Tensor c_out_S1 = per_token(sigmas, offsets, options, [](const Preconditioning& p) { return p.c_out; });
  const at::Tensor target_SC = (real(x0_TC) - c_skip_S1 * real(row.x_t_TC)) / c_out_S1;
  const at::Tensor token_loss_S = (target_SC - real(f_TC)).square().mean(1);
  if (segment_losses_N != nullptr) {
    // Differences of a running sum in float64: one kernel for any number of segments, and the same on each run. What is
    // not finite is counted apart, or the running sum would carry it to all segments after its own.
    const at::Tensor loss_S = token_loss_S.detach().to(at::kDouble);
    const at::Tensor is_good_S = loss_S.isfinite();
    const at::Tensor both_2S =
        at::stack({at::where(is_good_S, loss_S, at::zeros_like(loss_S)), is_good_S.logical_not().to(at::kDouble)});
    const at::Tensor at_offsets = at::constant_pad_nd(both_2S.cumsum(1), {1, 0})
                                      .index_select(1, at::tensor(offsets, at::kLong).to(options.device()));
    const at::Tensor of_2N = at_offsets.diff(1, 1);
    *segment_losses_N =
        of_2N[0].masked_fill(of_2N[1] > 0, std::numeric_limits<double>::quiet_NaN()).to(options.dtype());
  }
  return token_loss_S.sum();
}

}  // namespace dfm::diffusion
