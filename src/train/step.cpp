#include "dfm/train/step.h"

#include <ATen/ATen.h>

#include <algorithm>

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

// What a segment has among this rank's tokens: rows [row, row + count) of the rank's tensors are tokens [token, ...) of
// the sample.
struct RowBuilder::Part {
  std::int64_t row = 0, token = 0, count = 0;
};

std::vector<RowBuilder::Part> RowBuilder::parts_of(const TrainRow& row) const {
  const parallel::RowSegments& tokens = row.input.tokens;
  std::vector<Part> parts;
  for (std::size_t i = 0; i < row.members.size(); ++i) {
    const std::int64_t count = tokens.local.length(static_cast<std::int64_t>(i));
    parts.push_back(
        {tokens.local.offsets[i], std::max(std::int64_t{0}, tokens.local_first - tokens.row.offsets[i]), count});
  }
  return parts;
}

TrainRow RowBuilder::build(const data::LoadedStep& step, const data::Row& row) {
  const at::NoGradGuard no_grad;
  const std::int64_t channels = model_.token_channels();
  const at::Device device = settings_.device;
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
  out.input.tokens = parallel::RowSegments::make(out.token_lengths, settings_.parallel, device,
                                                 settings_.has_padding ? row.padded_tokens : 0);
  const std::vector<Part> parts = parts_of(out);
  const std::int64_t num_rows = out.input.tokens.local_length;

  // One buffer a kind on the host, so that a row is one copy to the device each. Padding rows are zero.
  const at::Tensor latents_TC = at::zeros({num_rows, channels}, at::kBFloat16);
  out.input.position_T3 = at::zeros({num_rows, 3}, at::kLong);
  std::vector<at::Tensor> texts;
  std::vector<float> fps;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const data::LoadedSample& loaded = step.samples[static_cast<std::size_t>(row.members[i])];
    const Part& part = parts[i];
    if (part.count > 0) {
      latents_TC.narrow(0, part.row, part.count)
          .copy_(models::patchify(loaded.sample.latent_CTHW, model_.patch_spatial, model_.patch_temporal)
                     .narrow(0, part.token, part.count));
      out.input.position_T3.narrow(0, part.row, part.count)
          .copy_(positions_of(shapes[i]).narrow(0, part.token, part.count));
    }
    const auto position = static_cast<std::uint64_t>(loaded.position);
    out.sigmas.push_back(diffusion::draw_sigma(settings_.seed, position, settings_.diffusion));
    const bool is_dropped = diffusion::draw_text_dropout(settings_.seed, position, settings_.diffusion);
    if (!is_dropped) texts.push_back(loaded.sample.text_LE);
    out.text_lengths.push_back(is_dropped ? 0 : loaded.sample.text_LE.size(0));
    fps.push_back(static_cast<float>(loaded.sample.fps));
  }

  const at::ScalarType loss_dtype = settings_.compute_dtype == at::kDouble ? at::kDouble : at::kFloat;
  out.x0_TC = latents_TC.to(device).to(loss_dtype).mul_(diffusion::kSigmaData);
  at::Tensor epsilon_TC = at::zeros({num_rows, channels}, at::TensorOptions(device).dtype(at::kFloat));
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].count == 0) continue;
    at::Tensor segment = epsilon_TC.narrow(0, parts[i].row, parts[i].count);
    const auto position = step.samples[static_cast<std::size_t>(out.members[i])].position;
    ops::philox_normal_(segment, settings_.seed, static_cast<std::uint64_t>(position), Purpose::kNoise,
                        static_cast<std::uint64_t>(parts[i].token * channels));
  }

  const std::vector<std::int64_t>& offsets = out.input.tokens.local.offsets;
  out.noised = diffusion::add_noise(out.x0_TC, epsilon_TC.to(loss_dtype), out.sigmas, offsets);
  out.input.x_TC = out.noised.x_in_TC.to(settings_.compute_dtype);
  out.input.c_noise_N = out.noised.c_noise_N;
  out.input.fps_N = at::tensor(fps, at::kFloat).to(device);
  out.input.text = ops::Segments::from_lengths(out.text_lengths, device);
  const at::Tensor text_LE = texts.empty() ? at::empty({0, model_.crossattn_emb_size}, at::kBFloat16) : at::cat(texts);
  out.input.text_LE = text_LE.to(device).to(settings_.compute_dtype);
  return out;
}

RowLoss forward_backward(const models::Dit& model, const TrainRow& row) {
  RowLoss loss;
  const at::Tensor f_TC = model.forward(row.input);
  const at::Tensor sum = diffusion::edm_loss_sum(f_TC, row.noised, row.x0_TC, row.sigmas,
                                                 row.input.tokens.local.offsets, &loss.segments_N);
  sum.backward();
  loss.sum = sum.detach();
  return loss;
}

}  // namespace dfm::train
