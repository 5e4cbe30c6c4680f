#include <ATen/ATen.h>

#include "dfm/ops/frame_norm.h"
#include "models/cosmos_tokenizer/layers.h"
#include "models/cosmos_tokenizer/strips.h"

namespace dfm::models::cosmos {

at::Tensor convolve(const at::Tensor& x_FHWC, const at::Tensor& weight, std::array<std::int64_t, 2> stride,
                    std::array<std::int64_t, 2> padding, const at::Tensor& out_FHWC) {
  const at::Tensor x = x_FHWC.permute({0, 3, 1, 2});
  if (x.is_cuda()) {
    // Said directly: no TF32 for float, no search for algorithms, and the result goes where it is needed.
    constexpr std::array<std::int64_t, 2> kOne{1, 1};
    if (out_FHWC.defined()) {
      at::Tensor out = out_FHWC.permute({0, 3, 1, 2});
      at::cudnn_convolution_out(out, x, weight, padding, stride, kOne, 1, false, false, false);
      return out_FHWC;
    }
    return at::cudnn_convolution(x, weight, padding, stride, kOne, 1, false, false, false)
        .permute({0, 2, 3, 1})
        .contiguous();
  }
  const at::Tensor y = at::conv2d(x, weight, {}, stride, padding).permute({0, 2, 3, 1});
  if (!out_FHWC.defined()) return y.contiguous();
  at::Tensor out = out_FHWC;
  return out.copy_(y);
}

std::int64_t strip_rows(const Stream& stream, std::int64_t row_bytes, std::int64_t rows) {
  constexpr std::int64_t kLeast = 4;  // fewer cost more in halos than they save
  if (stream.strip_bytes <= 0) return rows;
  return std::clamp(stream.strip_bytes / std::max<std::int64_t>(row_bytes, 1), std::min(kLeast, rows), rows);
}

namespace {

at::Tensor channels_last(const WeightReader& reader, const at::Tensor& weight) {
  return reader.to_compute(weight).contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

Pointwise::Pointwise(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out)
    : weight_OC_(reader.to_compute(reader.read(name + ".weight", {out, in, 1, 1, 1}).view({out, in}))),
      float_bias_(reader.read(name + ".bias", {out})),
      bias_(reader.to_compute(float_bias_)) {}

void Pointwise::add_to_bias(const WeightReader& reader, const at::Tensor& extra_C) {
  float_bias_ = float_bias_ + extra_C.to(at::kCPU);
  bias_ = reader.to_compute(float_bias_);
}

at::Tensor Pointwise::operator()(const at::Tensor& x) const { return at::linear(x, weight_OC_, bias_); }

TemporalConv::TemporalConv(WeightReader& reader, const std::string& name, std::int64_t channels)
    : host_weight_(reader.read(name + ".weight", {channels, channels, 3, 1, 1}).squeeze(-1)),
      host_bias_(reader.read(name + ".bias", {channels})) {
  weight_ = channels_last(reader, host_weight_);
  bias_ = reader.to_float(host_bias_);
}

at::Tensor TemporalConv::run(const at::Tensor& frames, std::int64_t stride) const {
  // A picture whose rows are frames and whose columns are all pixels of a frame.
  const auto n = frames.size(0), h = frames.size(2), w = frames.size(3), c = frames.size(4);
  return convolve(frames.flatten(2, 3), weight_, {stride, 1}, {0, 0}).view({n, -1, h, w, c});
}

ConvPair::ConvPair(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out)
    : in_(in), out_(out), slot_(reader.new_slot()), temporal_(reader, name + ".conv_t", out) {
  const at::Tensor spatial = reader.read(name + ".conv_s.weight", {out, in, 1, 3, 3}).squeeze(2);
  const at::Tensor spatial_bias = reader.read(name + ".conv_s.bias", {out});
  // In front of the first frame stand its copies, bias and all, so the first bias meets the sum of the taps always.
  const at::Tensor taps = temporal_.host_weight().sum(at::IntArrayRef{2, 3});
  spatial_ = channels_last(reader, spatial);
  picture_ = channels_last(reader, taps.matmul(spatial.flatten(1)).view_as(spatial));
  bias_ = reader.to_float(temporal_.host_bias() + taps.mv(spatial_bias));
  temporal_.forget_host();
}

void ConvPair::run(Stream& stream, const Shape& shape, const Rows& rows, const Emit& emit) const {
  const auto [n, t, h, w] = shape;
  const bool picture = stream.is_picture(t);
  at::Tensor& past = stream.slots[static_cast<std::size_t>(slot_)];
  const std::int64_t row_bytes =
      n * (t + 2) * w * std::max(in_, out_) * static_cast<std::int64_t>(spatial_.element_size());
  const std::int64_t step = strip_rows(stream, row_bytes, h);
  for (std::int64_t begin = 0; begin < h; begin += step) {
    const at::Tensor halo = rows(std::max<std::int64_t>(begin - 1, 0), std::min(begin + step + 1, h));
    const std::int64_t end = std::min(begin + step, h), count = end - begin, above = begin > 0 ? 1 : 0;
    const bool whole = halo.size(1) == count;
    // The rows of padding that a strip gets where it has neighbours are cut off with the neighbours' own.
    if (picture) {
      const at::Tensor y = convolve(halo, picture_, {1, 1}, {1, 1});
      emit(begin, end, (whole ? y : y.narrow(1, above, count)).unflatten(0, {n, t}));
      continue;
    }
    const at::Tensor frames = at::empty({n, t + 2, count, w, out_}, halo.options());
    const at::Tensor present = frames.narrow(1, 2, t);
    if (whole && n == 1) {
      convolve(halo, spatial_, {1, 1}, {1, 1}, present.squeeze(0));
    } else {
      present.copy_(convolve(halo, spatial_, {1, 1}, {1, 1}).narrow(1, above, count).unflatten(0, {n, t}));
    }
    frames.narrow(1, 0, 2).copy_(stream.first ? frames.narrow(1, 2, 1).expand({-1, 2, -1, -1, -1})
                                              : past.narrow(2, begin, count));
    emit(begin, end, temporal_.run(frames, 1));
    if (stream.last) continue;
    if (stream.first && begin == 0) past = at::empty({n, 2, h, w, out_}, halo.options());
    past.narrow(2, begin, count).copy_(frames.narrow(1, t, 2));
  }
}

at::Tensor ConvPair::assemble(Stream& stream, const Shape& shape, const Rows& rows) const {
  at::Tensor out;
  run(stream, shape, rows, [&](std::int64_t begin, std::int64_t end, const at::Tensor& y) {
    if (end - begin == shape.h) {
      out = y.contiguous();
      return;
    }
    if (!out.defined()) out = at::empty({shape.n, shape.t, shape.h, shape.w, out_}, y.options());
    out.narrow(2, begin, end - begin).copy_(y);
  });
  return out;
}

at::Tensor ConvPair::operator()(Stream& stream, const at::Tensor& x) const {
  const at::Tensor frames = x.flatten(0, 1);
  at::Tensor out = assemble(stream, {x.size(0), x.size(1), x.size(2), x.size(3)},
                            [&](std::int64_t begin, std::int64_t end) { return frames.narrow(1, begin, end - begin); });
  return out.add_(bias_.to(out.scalar_type()));
}

FrameNorm::FrameNorm(WeightReader& reader, const std::string& name, std::int64_t channels)
    : weight(reader.to_float(reader.read(name + ".norm.weight", {channels}))),
      shift(reader.to_float(reader.read(name + ".norm.bias", {channels}))) {}

ResBlock::ResBlock(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out)
    : norm1_(reader, name + ".norm1", in),
      norm2_(reader, name + ".norm2", out),
      conv1_(reader, name + ".conv1", in, out),
      conv2_(reader, name + ".conv2", out, out) {
  if (in == out) return;
  shortcut_.emplace(reader, name + ".conv_shortcut", in, out);
  shortcut_->add_to_bias(reader, conv2_.bias());
}

at::Tensor ResBlock::operator()(Stream& stream, at::Tensor x) const {
  const ConvPair::Shape shape{x.size(0), x.size(1), x.size(2), x.size(3)};
  const at::Tensor frames = x.flatten(0, 1);
  const ops::FrameMoments moments1 = ops::frame_moments(frames, {}, kNormEps);
  const at::Tensor inner = conv1_.assemble(stream, shape, [&](std::int64_t begin, std::int64_t end) {
    return ops::frame_normalise(frames.narrow(1, begin, end - begin), moments1, norm1_.weight, norm1_.shift, {}, true);
  });
  const at::Tensor inner_FHWC = inner.flatten(0, 1);
  const ops::FrameMoments moments2 = ops::frame_moments(inner_FHWC, conv1_.bias(), kNormEps);
  const at::Tensor sum = shortcut_ ? (*shortcut_)(x) : x;  // the shortcut brings the second bias with it
  conv2_.run(
      stream, shape,
      [&](std::int64_t begin, std::int64_t end) {
        return ops::frame_normalise(inner_FHWC.narrow(1, begin, end - begin), moments2, norm2_.weight, norm2_.shift,
                                    conv1_.bias(), true);
      },
      [&](std::int64_t begin, std::int64_t end, const at::Tensor& y) {
        ops::add_with_bias(sum.flatten(0, 1).narrow(1, begin, end - begin), y.flatten(0, 1),
                           shortcut_ ? at::Tensor() : conv2_.bias());
      });
  return sum;
}

}  // namespace dfm::models::cosmos
