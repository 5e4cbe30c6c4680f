#include "dfm/train/step.h"

#include "dfm/base/error.h"
#include "dfm/ops/philox_normal.h"

namespace dfm::train {

RowBuilder::RowBuilder(const models::DitConfig& model, const StepSettings& settings)
    : model_(model), settings_(settings) {}

const at::Tensor& RowBuilder::positions_of(const models::LatentShape& shape) {
  at::Tensor& positions = positions_[{shape.frames, shape.height, shape.width}];
  if (!positions.defined()) {
    positions = models::token_positions(shape, model_.patch_spatial, model_.patch_temporal);
  }
  return positions;
}

TrainRow RowBuilder::build(const data::LoadedStep& step, const data::Row& row) {
  const at::NoGradGuard no_grad;
  const std::int64_t channels = model_.token_channels();
  TrainRow out;
  out.members = row.members;
  std::vector<models::LatentShape> shapes;
  for (const std::int64_t member : row.members) {
    const at::Tensor& latent = step.samples.at(static_cast<std::size_t>(member)).sample.latent_CTHW;
    shapes.push_back({latent.size(0), latent.size(1), latent.size(2), latent.size(3)});
    out.token_lengths.push_back(shapes.back().num_tokens(model_.patch_spatial, model_.patch_temporal));
    out.num_tokens += out.token_lengths.back();
  }
  if (out.num_tokens > row.padded_tokens)
    throw InternalError("row of {} tokens: got samples of {} tokens", row.padded_tokens, out.num_tokens);
  const std::int64_t row_length = settings_.has_padding ? row.padded_tokens : out.num_tokens;

  // One buffer a kind on the host, so that a row is one copy to the device each. Padding rows are zero.
  const at::Tensor latents_TC = at::zeros({row_length, channels}, at::kBFloat16);
  const at::Tensor positions_T3 = at::zeros({row_length, 3}, at::kLong);
  std::vector<at::Tensor> texts;
  std::vector<float> fps;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const data::LoadedSample& loaded = step.samples[static_cast<std::size_t>(row.members[i])];
    const std::int64_t length = out.token_lengths[i];
    latents_TC.narrow(0, first, length)
        .copy_(models::patchify(loaded.sample.latent_CTHW, model_.patch_spatial, model_.patch_temporal));
    positions_T3.narrow(0, first, length).copy_(positions_of(shapes[i]));
    first += length;

    const auto position = static_cast<std::uint64_t>(loaded.position);
    out.sigmas.push_back(diffusion::draw_sigma(settings_.seed, position, settings_.diffusion));
    const bool is_dropped = diffusion::draw_text_dropout(settings_.seed, position, settings_.diffusion);
    if (!is_dropped) texts.push_back(loaded.sample.text_LE);
    out.text_lengths.push_back(is_dropped ? 0 : loaded.sample.text_LE.size(0));
    fps.push_back(static_cast<float>(loaded.sample.fps));
  }

  const at::Device device = settings_.device;
  const at::ScalarType loss_dtype = settings_.compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  out.x0_TC = latents_TC.to(device).to(loss_dtype).mul_(diffusion::kSigmaData);
  at::Tensor epsilon_TC = at::zeros({row_length, channels}, at::TensorOptions(device).dtype(at::kFloat));
  first = 0;
  for (std::size_t i = 0; i < out.members.size(); ++i) {
    at::Tensor segment = epsilon_TC.narrow(0, first, out.token_lengths[i]);
    const auto position = step.samples[static_cast<std::size_t>(out.members[i])].position;
    ops::philox_normal_(segment, settings_.seed, static_cast<std::uint64_t>(position), Purpose::kNoise);
    first += out.token_lengths[i];
  }

  out.input.tokens = ops::Segments::from_lengths(out.token_lengths, device);
  out.noised = diffusion::add_noise(out.x0_TC, epsilon_TC.to(loss_dtype), out.sigmas, out.input.tokens.offsets);
  out.input.x_TC = out.noised.x_in_TC.to(settings_.compute_dtype);
  out.input.c_noise_N = out.noised.c_noise_N;
  out.input.position_T3 = positions_T3.to(device);
  out.input.fps_N = at::tensor(fps, at::kFloat).to(device);
  out.input.text = ops::Segments::from_lengths(out.text_lengths, device);
  const at::Tensor text_LE = texts.empty() ? at::empty({0, model_.crossattn_emb_size}, at::kBFloat16) : at::cat(texts);
  out.input.text_LE = text_LE.to(device).to(settings_.compute_dtype);
  return out;
}

RowLoss forward_backward(const models::Dit& model, const TrainRow& row) {
  RowLoss loss;
  const at::Tensor f_TC = model.forward(row.input);
  const at::Tensor sum =
      diffusion::edm_loss_sum(f_TC, row.noised, row.x0_TC, row.sigmas, row.input.tokens.offsets, &loss.segments_N);
  sum.backward();
  loss.sum = sum.detach();
  return loss;
}

}  // namespace dfm::train
