#include "models/cosmos_tokenizer/network.h"

#include <ATen/ATen.h>

#include "dfm/ops/frame_norm.h"
#include "models/cosmos_tokenizer/strips.h"

namespace dfm::models::cosmos {
namespace {

// The tensors of one half; what belongs to neither half goes to the encoder's, where it will be reported.
NamedTensors half_of(const NamedTensors& tensors, bool decoder) {
  NamedTensors half;
  for (const auto& [name, tensor] : tensors) {
    const bool in_decoder = name.starts_with("decoder.") || name.starts_with("post_quant_conv.");
    if (in_decoder == decoder) half.emplace(name, tensor);
  }
  return half;
}

std::int64_t num_levels(const Config& config) { return static_cast<std::int64_t>(config.encoder_widths.size()) - 1; }

std::vector<Block> make_blocks(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out,
                               std::int64_t count, bool attention) {
  std::vector<Block> blocks;
  for (std::int64_t i = 0; i < count; ++i) {
    blocks.push_back({ResBlock(reader, fmt::format("{}.resnets.{}", name, i), i == 0 ? in : out, out), {}});
    if (!attention) continue;
    blocks.back().attention.emplace_back(reader, fmt::format("{}.attentions.{}", name, i), out, false);
    blocks.back().attention.emplace_back(reader, fmt::format("{}.temp_attentions.{}", name, i), out, true);
  }
  return blocks;
}

template <typename Stage>
at::Tensor run_stages(const std::vector<Stage>& stages, Stream& stream, at::Tensor x) {
  for (const Stage& stage : stages) {
    for (const Block& block : stage.blocks) {
      x = block.residual(stream, std::move(x));
      for (const Attention& attention : block.attention) x = attention(stream, std::move(x));
    }
    if (stage.sampler) x = (*stage.sampler)(stream, std::move(x));
  }
  return x;
}

void finish(const WeightReader& reader, const Placement& placement) {
  if (placement.requests == nullptr) {
    reader.finish(placement.where);
  } else {
    placement.requests->insert(placement.requests->end(), reader.requests().begin(), reader.requests().end());
  }
}

Stream make_stream(std::int64_t num_slots) {
  Stream stream;
  stream.slots.resize(static_cast<std::size_t>(num_slots));
  return stream;
}

}  // namespace

TensorShapes tensor_shapes(const Config& config) {
  TensorShapes shapes;
  const Placement placement{at::kCPU, at::kFloat, {}, &shapes};
  static_cast<void>(Encoder(config, {}, placement));
  static_cast<void>(Decoder(config, {}, placement));
  return shapes;
}

Middle::Middle(WeightReader& reader, const std::string& name, std::int64_t channels)
    : first_(reader, name + ".resnets.0", channels, channels),
      spatial_(reader, name + ".attentions.0", channels, false),
      temporal_(reader, name + ".temp_attentions.0", channels, true),
      second_(reader, name + ".resnets.1", channels, channels) {}

at::Tensor Middle::operator()(Stream& stream, at::Tensor x) const {
  x = first_(stream, std::move(x));
  x = spatial_(stream, std::move(x));
  x = temporal_(stream, std::move(x));
  return second_(stream, std::move(x));
}

Head::Head(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out)
    : norm_(reader, name + ".norm_out", in), conv_(reader, name + ".conv_out", in, out) {}

at::Tensor Head::operator()(Stream& stream, const at::Tensor& x) const {
  const at::Tensor frames = x.flatten(0, 1);
  const ops::FrameMoments moments = ops::frame_moments(frames, {}, kNormEps);
  const ConvPair::Shape shape{x.size(0), x.size(1), x.size(2), x.size(3)};
  at::Tensor y = conv_.assemble(stream, shape, [&](std::int64_t begin, std::int64_t end) {
    return ops::frame_normalise(frames.narrow(1, begin, end - begin), moments, norm_.weight, norm_.shift, {}, true);
  });
  return y.add_(conv_.bias().to(y.scalar_type()));
}

Encoder::Encoder(const Config& config, const NamedTensors& tensors, const Placement& placement)
    : Encoder(config, WeightReader(half_of(tensors, false), num_levels(config), placement.device, placement.dtype),
              placement) {}

Encoder::Encoder(const Config& config, WeightReader reader, const Placement& placement)
    : patcher_(config.patch_size, config.haar, placement.device),
      conv_in_(reader, "encoder.conv_in", config.patch_channels(), config.encoder_widths.front()),
      middle_(reader, "encoder.mid_block", config.encoder_widths.back()),
      head_(reader, "encoder", config.encoder_widths.back(), config.latent_channels),
      quant_(reader, "quant_conv", config.latent_channels, config.latent_channels),
      dtype_(placement.dtype),
      num_slots_(0) {
  const std::vector<Level> levels = config.encoder_levels();
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const std::string name = fmt::format("encoder.down_blocks.{}", i);
    const std::int64_t out = config.encoder_widths[i + 1];
    Stage stage{make_blocks(reader, name, config.encoder_widths[i], out, config.num_layers, levels[i].attention), {}};
    if (levels[i].spatial || levels[i].temporal)
      stage.sampler.emplace(reader, name + ".downsamplers.0", out, levels[i]);
    stages_.push_back(std::move(stage));
  }
  num_slots_ = reader.num_slots();
  finish(reader, placement);
}

Stream Encoder::start() const { return make_stream(num_slots_); }

at::Tensor Encoder::operator()(Stream& stream, const at::Tensor& pixels_NCTHW) const {
  at::Tensor x = conv_in_(stream, patcher_.forward(pixels_NCTHW, stream.first).to(dtype_));
  x = middle_(stream, run_stages(stages_, stream, std::move(x)));
  x = quant_(head_(stream, x));
  stream.first = false;
  return x.permute({0, 4, 1, 2, 3}).to(at::kFloat).contiguous();
}

Decoder::Decoder(const Config& config, const NamedTensors& tensors, const Placement& placement)
    : Decoder(config, WeightReader(half_of(tensors, true), num_levels(config), placement.device, placement.dtype),
              placement) {}

Decoder::Decoder(const Config& config, WeightReader reader, const Placement& placement)
    : patcher_(config.patch_size, config.haar, placement.device),
      post_quant_(reader, "post_quant_conv", config.latent_channels, config.latent_channels),
      conv_in_(reader, "decoder.conv_in", config.latent_channels, config.decoder_widths.back()),
      middle_(reader, "decoder.mid_block", config.decoder_widths.back()),
      head_(reader, "decoder", config.decoder_widths.front(), config.patch_channels()),
      dtype_(placement.dtype),
      num_slots_(0) {
  const std::vector<Level> levels = config.decoder_levels();
  const std::vector<std::int64_t> widths(config.decoder_widths.rbegin(), config.decoder_widths.rend());
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const std::string name = fmt::format("decoder.up_blocks.{}", i);
    const std::int64_t out = widths[i + 1];
    Stage stage{make_blocks(reader, name, widths[i], out, config.num_layers + 1, levels[i].attention), {}};
    if (levels[i].spatial || levels[i].temporal) stage.sampler.emplace(reader, name + ".upsamplers.0", out, levels[i]);
    stages_.push_back(std::move(stage));
  }
  num_slots_ = reader.num_slots();
  finish(reader, placement);
}

Stream Decoder::start() const { return make_stream(num_slots_); }

at::Tensor Decoder::operator()(Stream& stream, const at::Tensor& latent_NCTHW) const {
  const at::Tensor latent = latent_NCTHW.permute({0, 2, 3, 4, 1}).to(dtype_).contiguous();
  at::Tensor x = middle_(stream, conv_in_(stream, post_quant_(latent)));
  x = head_(stream, run_stages(stages_, stream, std::move(x)));
  const at::Tensor pixels = patcher_.inverse(x, stream.first);
  stream.first = false;
  return pixels;
}

}  // namespace dfm::models::cosmos
