#include "generate/denoiser.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dfm/base/philox.h"
#include "dfm/diffusion/edm.h"
#include "dfm/ops/philox_normal.h"
#include "dfm/parallel/row.h"

namespace dfm::generate {
namespace {

// The clip as a row of one segment, and this rank's part of it.
struct ClipRow {
  parallel::RowSegments segments;
  std::int64_t num_tokens = 0;   // of the clip
  std::int64_t first = 0;        // of this rank's tokens
  std::int64_t num_own = 0;      // 0 for a rank that has nothing but padding
  std::int64_t num_padding = 0;  // that this rank has after them

  ClipRow(const models::Dit& dit, const models::LatentShape& shape, at::Device device) {
    num_tokens = shape.num_tokens(dit.config().patch_spatial, dit.config().patch_temporal);
    segments = parallel::RowSegments::make({num_tokens}, dit.parallel(), device);
    first = std::min(segments.local_first, num_tokens);
    num_own = std::min(num_tokens - first, segments.local_length);
    num_padding = segments.local_length - num_own;
  }

  [[nodiscard]] at::Tensor with_padding(const at::Tensor& own_SX) const {
    return num_padding == 0 ? own_SX : at::constant_pad_nd(own_SX, {0, 0, 0, num_padding});
  }
  // The tokens of all ranks.
  [[nodiscard]] at::Tensor gather(const at::Tensor& own_SC, const comm::GroupPtr& context) const {
    if (context->is_alone()) return own_SC;
    const at::Tensor part_TC = with_padding(own_SC).contiguous();
    const at::Tensor row_TC = at::empty({segments.length, own_SC.size(1)}, own_SC.options());
    context->all_gather(row_TC, part_TC).wait();
    return row_TC.narrow(0, 0, num_tokens);
  }
};

at::TensorOptions options_of(const models::Dit& dit) {
  return dit.parameters().front().second.options().requires_grad(false);
}

// Computes one branch here, takes the other from the peer, and guides; both get the same bits.
diffusion::Denoiser shared_guidance(diffusion::Denoiser own, comm::GroupPtr branches, double guidance) {
  return [own = std::move(own), branches = std::move(branches), guidance](const at::Tensor& x_SC, double sigma) {
    const at::Tensor estimate_SC = own(x_SC, sigma).contiguous();
    const at::Tensor both_BSC = at::empty({2, estimate_SC.size(0), estimate_SC.size(1)}, estimate_SC.options());
    if (estimate_SC.numel() > 0) branches->all_gather(both_BSC, estimate_SC).wait();
    return diffusion::guide(both_BSC[0], both_BSC[1], guidance);
  };
}

}  // namespace

diffusion::Denoiser dit_denoiser(const models::Dit& dit, const models::LatentShape& shape, const at::Tensor& text_LE,
                                 double fps) {
  const models::DitConfig& config = dit.config();
  const at::TensorOptions options = options_of(dit);
  const at::ScalarType dtype = options.dtype().toScalarType();
  const at::TensorOptions scalars = options.dtype(dtype == at::kDouble ? at::kDouble : at::kFloat);
  const ClipRow row(dit, shape, options.device());
  models::DitInput input;
  input.tokens = row.segments;
  input.position_T3 = row.with_padding(
      models::token_positions(shape, config.patch_spatial, config.patch_temporal).narrow(0, row.first, row.num_own));
  input.fps_N = at::full({1}, fps, scalars);
  input.text_LE = text_LE.to(options);
  input.text = ops::Segments::from_lengths({text_LE.size(0)}, options.device());
  return [&dit, input, row, scalars, dtype](const at::Tensor& x_SC, double sigma) {
    const at::NoGradGuard no_grad;
    const diffusion::Preconditioning p = diffusion::precondition(sigma);
    models::DitInput step = input;
    step.x_TC = row.with_padding((p.c_in * x_SC).to(dtype));
    step.c_noise_N = at::full({1}, p.c_noise, scalars);
    const at::Tensor f_SC = dit.forward(step).narrow(0, 0, row.num_own);
    return p.c_skip * x_SC + p.c_out * f_SC.to(at::kDouble);
  };
}

at::Tensor sample_clip(const models::Dit& dit, const Clip& clip, const comm::GroupPtr& branches,
                       const diffusion::SampleOptions& options) {
  const at::NoGradGuard no_grad;
  const models::DitConfig& config = dit.config();
  const at::Device device = options_of(dit).device();
  const auto branch = [&](const at::Tensor& text_LE) { return dit_denoiser(dit, clip.shape, text_LE, clip.fps); };
  const diffusion::Denoiser denoiser =
      branches->is_alone() ? diffusion::guided(branch(clip.text_LE), branch(clip.negative_text_LE), clip.guidance)
                           : shared_guidance(branch(branches->rank() == 0 ? clip.text_LE : clip.negative_text_LE),
                                             branches, clip.guidance);
  const ClipRow row(dit, clip.shape, device);
  const std::int64_t width = config.token_channels();
  at::Tensor epsilon_SC = at::empty({row.num_own, width}, at::TensorOptions().dtype(at::kFloat).device(device));
  ops::philox_normal_(epsilon_SC, clip.seed, clip.index, Purpose::kGenerate,
                      static_cast<std::uint64_t>(row.first * width));
  const at::Tensor own_SC = diffusion::sample(denoiser, epsilon_SC, options);
  return models::unpatchify(row.gather(own_SC, dit.parallel().context), clip.shape, config.patch_spatial,
                            config.patch_temporal);
}

}  // namespace dfm::generate
