#include "generate/denoiser.h"

#include <ATen/ATen.h>

#include "dfm/diffusion/edm.h"

namespace dfm::generate {

diffusion::Denoiser dit_denoiser(const models::Dit& dit, const models::LatentShape& shape, const at::Tensor& text_LE,
                                 double fps) {
  const models::DitConfig& config = dit.config();
  const at::TensorOptions options = dit.parameters().front().second.options().requires_grad(false);
  const at::ScalarType dtype = options.dtype().toScalarType();
  const at::TensorOptions scalars = options.dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  models::DitInput input;
  input.tokens =
      ops::Segments::from_lengths({shape.num_tokens(config.patch_spatial, config.patch_temporal)}, options.device());
  input.position_T3 = models::token_positions(shape, config.patch_spatial, config.patch_temporal).to(options.device());
  input.fps_N = at::full({1}, fps, scalars);
  input.text_LE = text_LE.to(options);
  input.text = ops::Segments::from_lengths({text_LE.size(0)}, options.device());
  return [&dit, input, scalars, dtype](const at::Tensor& x_TC, double sigma) {
    const at::NoGradGuard no_grad;
    const diffusion::Preconditioning p = diffusion::precondition(sigma);
    models::DitInput step = input;
    step.x_TC = (p.c_in * x_TC).to(dtype);
    step.c_noise_N = at::full({1}, p.c_noise, scalars);
    const at::Tensor f_TC = dit.forward(step);
    return p.c_skip * x_TC + p.c_out * f_TC.to(at::kDouble);
  };
}

}  // namespace dfm::generate
