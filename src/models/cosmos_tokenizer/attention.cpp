#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "dfm/ops/frame_norm.h"
#include "models/cosmos_tokenizer/layers.h"
#include "models/cosmos_tokenizer/strips.h"

namespace dfm::models::cosmos {
namespace {

constexpr std::int64_t kScoresAtOnce = std::int64_t{1} << 26;  // floats

// q, k, v: [L, C] each, queries scaled. On a GPU in two matrix products with scores in float: no fused kernel takes
// heads of 512 channels at more than a fraction of the speed.
at::Tensor attend(const at::Tensor& q_LC, const at::Tensor& k_LC, const at::Tensor& v_LC) {
  if (!q_LC.is_cuda()) {
    const auto batched = [](const at::Tensor& x) { return x.unsqueeze(0).unsqueeze(0); };
    return at::scaled_dot_product_attention(batched(q_LC), batched(k_LC), batched(v_LC), {}, 0.0, false, 1.0)
        .squeeze(0)
        .squeeze(0);
  }
  const std::int64_t length = q_LC.size(0);
  const std::int64_t step = std::clamp<std::int64_t>(kScoresAtOnce / length, 1, length);
  at::Tensor out_LC = at::empty({length, v_LC.size(1)}, v_LC.options());
  for (std::int64_t begin = 0; begin < length; begin += step) {
    const std::int64_t count = std::min(step, length - begin);
    const at::Tensor q = q_LC.narrow(0, begin, count);
    const at::Tensor scores = q.scalar_type() == at::kFloat ? at::mm(q, k_LC.t()) : at::mm(q, k_LC.t(), at::kFloat);
    at::Tensor rows = out_LC.narrow(0, begin, count);
    at::mm_out(rows, at::softmax(scores, -1).to(v_LC.scalar_type()), v_LC);
  }
  return out_LC;
}

}  // namespace

Attention::Attention(WeightReader& reader, const std::string& name, std::int64_t channels, bool temporal)
    : channels_(channels), slot_(reader.new_slot()), temporal_(temporal), norm_(reader, name + ".norm", channels) {
  reader.new_slot();  // keys and values
  const double scale = 1 / std::sqrt(static_cast<double>(channels));
  std::vector<at::Tensor> weights, biases;
  for (const char* part : {".to_q", ".to_k", ".to_v"}) {
    const double factor = weights.empty() ? scale : 1.0;
    weights.push_back(reader.read(name + part + ".weight", {channels, channels, 1, 1, 1}).flatten(1) * factor);
    biases.push_back(reader.read(name + part + ".bias", {channels}) * factor);
  }
  qkv_weight_ = reader.to_compute(at::cat(weights));
  qkv_bias_ = reader.to_compute(at::cat(biases));
  out_weight_ = reader.to_compute(reader.read(name + ".to_out.0.weight", {channels, channels, 1, 1, 1}).flatten(1));
  out_bias_ = reader.to_compute(reader.read(name + ".to_out.0.bias", {channels}));
}

void Attention::spatial(const at::Tensor& x_FHWC, const at::Tensor& normed_FHWC) const {
  for (std::int64_t f = 0; f < x_FHWC.size(0); ++f) {  // one at a time: bounds the memory
    const at::Tensor qkv = at::linear(normed_FHWC.select(0, f).flatten(0, 1), qkv_weight_, qkv_bias_);
    const auto parts = qkv.chunk(3, 1);
    const at::Tensor mixed = attend(parts[0], parts[1], parts[2]);
    x_FHWC.select(0, f).flatten(0, 1).add_(at::linear(mixed, out_weight_, out_bias_));
  }
}

void Attention::temporal(Stream& stream, const at::Tensor& x, const at::Tensor& normed) const {
  const auto n = x.size(0), t = x.size(1), h = x.size(2), w = x.size(3);
  if (stream.is_picture(t)) {  // a frame that sees itself only: its value
    const at::Tensor values = at::linear(normed, qkv_weight_.narrow(0, 2 * channels_, channels_),
                                         qkv_bias_.narrow(0, 2 * channels_, channels_));
    at::Tensor target = x;
    target.add_(at::linear(values, out_weight_, out_bias_));
    return;
  }
  const at::Tensor qkv = at::linear(normed, qkv_weight_, qkv_bias_).view({n, t, h * w, 3 * channels_});
  const auto parts = qkv.chunk(3, 3);
  at::Tensor keys = parts[1], values = parts[2];  // [N, S, HW, C], S frames: this piece's and those before it
  at::Tensor &past_keys = stream.slots[static_cast<std::size_t>(slot_)],
             &past_values = stream.slots[static_cast<std::size_t>(slot_) + 1];
  if (past_keys.defined()) {
    keys = at::cat({past_keys, keys}, 1);
    values = at::cat({past_values, values}, 1);
  }
  const std::int64_t s = keys.size(1);
  // Frame i of this piece is frame s - t + i of the keys.
  const at::Tensor query_frames = at::arange(s - t, s, x.options().dtype(at::kLong)).unsqueeze(1);
  const at::Tensor distance_TS = query_frames - at::arange(s, query_frames.options());
  at::Tensor hidden_TS = distance_TS.lt(0);
  if (stream.window > 0) hidden_TS = hidden_TS.logical_or(distance_TS.gt(stream.window));
  for (std::int64_t i = 0; i < n; ++i) {
    const at::Tensor queries = parts[0].select(0, i).transpose(0, 1);  // [HW, T, C]
    at::Tensor scores = queries.bmm(keys.select(0, i).permute({1, 2, 0})).to(at::kFloat);
    scores.masked_fill_(hidden_TS, -std::numeric_limits<float>::infinity());
    const at::Tensor shares = at::softmax(scores, -1).to(x.scalar_type());
    const at::Tensor mixed = shares.bmm(values.select(0, i).transpose(0, 1)).transpose(0, 1);  // [T, HW, C]
    x.select(0, i).flatten(1, 2).add_(at::linear(mixed.contiguous(), out_weight_, out_bias_));
  }
  if (stream.last) return;
  const std::int64_t kept = stream.window > 0 ? std::min(s, stream.window) : s;
  past_keys = keys.narrow(1, s - kept, kept).contiguous();
  past_values = values.narrow(1, s - kept, kept).contiguous();
}

at::Tensor Attention::operator()(Stream& stream, at::Tensor x) const {
  const at::Tensor frames = x.flatten(0, 1);
  const at::Tensor normed =
      ops::frame_normalise(frames, ops::frame_moments(frames, {}, kNormEps), norm_.weight, norm_.shift, {}, false);
  if (temporal_) {
    temporal(stream, x, normed.view_as(x));
  } else {
    spatial(frames, normed);
  }
  return x;
}

}  // namespace dfm::models::cosmos
