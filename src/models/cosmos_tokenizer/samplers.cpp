#include <ATen/ATen.h>

#include "dfm/ops/frame_norm.h"
#include "models/cosmos_tokenizer/layers.h"
#include "models/cosmos_tokenizer/strips.h"

namespace dfm::models::cosmos {
namespace {

at::Tensor spatial_weight(WeightReader& reader, const std::string& name, std::int64_t channels) {
  return reader.to_compute(reader.read(name, {channels, channels, 1, 3, 3}).squeeze(2))
      .contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

Downsample::Downsample(WeightReader& reader, const std::string& name, std::int64_t channels, const Level& level)
    : slot_(reader.new_slot()), out_(reader, name + ".conv3", channels, channels) {
  if (level.spatial) {
    spatial_weight_ = spatial_weight(reader, name + ".conv1.weight", channels);
    spatial_bias_ = reader.to_float(reader.read(name + ".conv1.bias", {channels}));
  }
  if (level.temporal) temporal_.emplace(reader, name + ".conv2", channels);
}

// Each half is a convolution plus the mean of what it merges. Pictures end in a row and a column of zeros on the far
// sides; clips begin with two copies of the first frame, of which the mean sees one.
at::Tensor Downsample::operator()(Stream& stream, at::Tensor x) const {
  const auto n = x.size(0), t = x.size(1), c = x.size(4);
  if (spatial_weight_.defined()) {
    const std::int64_t h = x.size(2), w = x.size(3),
                       row_bytes = 2 * n * t * w * c * static_cast<std::int64_t>(x.element_size());
    const std::int64_t step = strip_rows(stream, row_bytes, h / 2);
    const at::Tensor frames = x.flatten(0, 1), half = at::empty({n * t, h / 2, w / 2, c}, x.options());
    for (std::int64_t begin = 0; begin < h / 2; begin += step) {
      const std::int64_t count = std::min(step, h / 2 - begin), above = 2 * begin,
                         below = std::min(above + 2 * count + 1, h);
      const at::Tensor rows =
          at::constant_pad_nd(frames.narrow(1, above, below - above), {0, 0, 0, 1, 0, above + 2 * count + 1 - below});
      const at::Tensor mean = at::avg_pool2d(rows.permute({0, 3, 1, 2}), {2, 2}, {2, 2}).permute({0, 2, 3, 1});
      at::Tensor target = half.narrow(1, begin, count);
      target.copy_(mean);
      ops::add_with_bias(target, convolve(rows, spatial_weight_, {2, 2}, {0, 0}), spatial_bias_);
    }
    x = half.unflatten(0, {n, t});
  }
  if (temporal_) {
    at::Tensor& past = stream.slots[static_cast<std::size_t>(slot_)];  // the frame before this piece
    const at::Tensor head = x.narrow(1, 0, 1);
    const at::Tensor frames = stream.first ? at::cat({head, head, x}, 1) : at::cat({past, x}, 1);
    const std::int64_t pairs = (frames.size(1) - 1) / 2;
    const auto both = frames.narrow(1, 1, 2 * pairs).unflatten(1, {pairs, 2}).unbind(2);
    const at::Tensor mean = (both[0] + both[1]).div_(2);
    if (!stream.last) past = x.narrow(1, t - 1, 1).contiguous();
    ops::add_with_bias(mean.flatten(0, 1), temporal_->run(frames, 2).flatten(0, 1), temporal_->bias());
    x = mean;
  }
  return out_(x);
}

Upsample::Upsample(WeightReader& reader, const std::string& name, std::int64_t channels, const Level& level)
    : slot_(reader.new_slot()), out_(reader, name + ".conv3", channels, channels) {
  if (level.temporal) temporal_.emplace(reader, name + ".conv1", channels);
  if (level.spatial) {
    spatial_weight_ = spatial_weight(reader, name + ".conv2.weight", channels);
    spatial_bias_ = reader.to_float(reader.read(name + ".conv2.bias", {channels}));
  }
}

// Each half repeats, then adds a convolution of what it repeated. The first frame of a clip is not repeated.
at::Tensor Upsample::operator()(Stream& stream, at::Tensor x) const {
  if (temporal_) {
    at::Tensor& past = stream.slots[static_cast<std::size_t>(slot_)];  // two repeated frames
    const std::int64_t dropped = stream.first ? 1 : 0, t = 2 * x.size(1) - dropped;
    const at::Tensor frames = at::empty({x.size(0), t + 2, x.size(2), x.size(3), x.size(4)}, x.options());
    const at::Tensor repeated = frames.narrow(1, 2, t);
    repeated.copy_(x.repeat_interleave(2, 1).narrow(1, dropped, t));
    frames.narrow(1, 0, 2).copy_(stream.first ? x.narrow(1, 0, 1).expand({-1, 2, -1, -1, -1}) : past);
    const at::Tensor sum = temporal_->run(frames, 1);
    if (!stream.last) past = frames.narrow(1, t, 2).contiguous();
    for (std::int64_t i = 0; i < x.size(0); ++i) {
      ops::add_with_bias(sum.select(0, i), repeated.select(0, i), temporal_->bias());
    }
    x = sum;
  }
  const auto n = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3), c = x.size(4);
  if (!spatial_weight_.defined()) return out_(x);
  const at::Tensor frames = x.flatten(0, 1);
  const std::int64_t step = strip_rows(stream, 4 * n * t * w * c * static_cast<std::int64_t>(x.element_size()), h);
  at::Tensor out;
  for (std::int64_t begin = 0; begin < h; begin += step) {
    const std::int64_t count = std::min(step, h - begin);
    const std::int64_t above = std::max<std::int64_t>(begin - 1, 0), below = std::min(begin + count + 1, h);
    const at::Tensor rows = frames.narrow(1, above, below - above);
    const at::Tensor larger = rows.unsqueeze(3)
                                  .unsqueeze(2)
                                  .expand({n * t, below - above, 2, w, 2, c})
                                  .reshape({n * t, 2 * (below - above), 2 * w, c});
    const at::Tensor sum = convolve(larger, spatial_weight_, {1, 1}, {1, 1});
    ops::add_with_bias(sum, larger, spatial_bias_);
    if (count == h) return out_(sum).unflatten(0, {n, t});
    if (!out.defined()) out = at::empty({n * t, 2 * h, 2 * w, c}, x.options());
    out.narrow(1, 2 * begin, 2 * count).copy_(out_(sum.narrow(1, 2 * (begin - above), 2 * count)));
  }
  return out.unflatten(0, {n, t});
}

}  // namespace dfm::models::cosmos
