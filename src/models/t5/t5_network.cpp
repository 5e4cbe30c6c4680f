#include "models/t5/t5_network.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "dfm/base/error.h"
#include "models/t5/attention_groups.h"
#include "models/t5/position_bias.h"

namespace dfm::models {
namespace {

using Captions = std::vector<const std::vector<std::int32_t>*>;

// An attention call: the rows of its captions, padded to the longest, and the additive bias.
struct PlannedGroup {
  AttentionGroup group;
  std::int64_t first_token = 0, num_tokens = 0;
  at::Tensor bias_NHLL;  // [1 or N, H, L, L]
  at::Tensor gather_NL;  // padded: which token each row is (padding: the caption's first)
  at::Tensor scatter_T;  // padded: which row each token is
};

struct Batch {
  at::Tensor x_TD;  // float: the sum of the layers so far
  std::vector<PlannedGroup> groups;
  std::vector<std::int64_t> lengths;
};

at::Tensor to_device(const std::vector<std::int64_t>& values, at::Device device) {
  return at::tensor(values, at::kLong).to(device);
}

// x [T, in] by matrices [out, in] that lie over one another: [T, sum of out].
at::Tensor project(const at::Tensor& x, const std::vector<at::Tensor>& parts) {
  if (parts.size() == 1) return at::mm(x, parts[0].t());
  std::int64_t width = 0;
  for (const at::Tensor& part : parts) width += part.size(0);
  at::Tensor result = at::empty({x.size(0), width}, x.options());
  width = 0;
  for (const at::Tensor& part : parts) {
    at::Tensor target = result.narrow(1, width, part.size(0));
    at::mm_out(target, x, part.t());
    width += part.size(0);
  }
  return result;
}

void activate_(at::Tensor& x, T5Activation activation) {
  switch (activation) {
    case T5Activation::kRelu:
      at::relu_(x);
      break;
    case T5Activation::kGeluTanh:
      at::gelu_(x, "tanh");
      break;
    case T5Activation::kGelu:
      at::gelu_(x);
      break;
    case T5Activation::kSilu:
      at::silu_(x);
      break;
  }
}

// The activation of x w^T. On a GPU ReLU and tanh-GELU are part of the multiplication (cuBLAS): the hidden row, the
// widest there is, is then written once only.
at::Tensor activated(const at::Tensor& x, const at::Tensor& w, const at::Tensor& no_bias, T5Activation activation) {
  const bool relu = activation == T5Activation::kRelu;
  if (x.is_cuda() && (relu || activation == T5Activation::kGeluTanh)) {
    return at::_addmm_activation(no_bias, x, w.t(), 1, 1, /*use_gelu=*/!relu);
  }
  at::Tensor hidden = at::mm(x, w.t());
  activate_(hidden, activation);
  return hidden;
}

// The bytes of the widest row of a layer bound a batch: about a gigabyte on a GPU, less on a CPU.
std::int64_t tokens_of_batch(const T5Weights& weights) {
  const T5Config& config = weights.config;
  const std::int64_t widest = std::max(3 * config.inner(), config.d_ff * (config.gated ? 2 : 1));
  const std::int64_t bytes = std::int64_t{weights.device.is_cpu() ? 128 : 1024} << 20;
  const auto element = static_cast<std::int64_t>(c10::elementSize(weights.dtype));
  return std::clamp<std::int64_t>(bytes / (widest * element), T5Network::kMaxLength, 16384);
}

// Streamed layers: while one computes from one buffer, the next is copied into the other.
class LayerStream {
 public:
  explicit LayerStream(const T5Weights& weights)
      : weights_(weights), compute_(guard_.getStream(weights.device)), copy_(guard_.getNewStream(weights.device)) {
    for (Buffer& buffer : buffers_) {
      const c10::StreamGuard on(copy_);  // the allocator then knows where the memory is written
      buffer.layer = at_device(weights.layers.front());
      for_each(buffer.layer, [&](const at::Tensor& t) { t.record_stream(compute_); });
    }
    // Freed blocks that the allocator hands out may still be in use by earlier work.
    c10::Event before(weights.device.type());
    before.record(compute_);
    before.block(copy_);
    fetch(0);
  }

  // Layer i, to be asked for in order. Starts the copy of the next one.
  const T5Layer& layer(std::size_t i) {
    if (i > 0) buffers_[(i - 1) % 2].used.record(compute_);
    if (i + 1 < weights_.layers.size()) fetch(i + 1);
    Buffer& buffer = buffers_[i % 2];
    buffer.filled.block(compute_);
    return buffer.layer;
  }

 private:
  struct Buffer {
    T5Layer layer;
    c10::Event filled{c10::DeviceType::CUDA}, used{c10::DeviceType::CUDA};
  };

  template <typename Function>
  static void for_each(const T5Layer& layer, Function&& function) {
    for (const at::Tensor& t : layer.qkv) function(t);
    for (const at::Tensor& t : layer.wi) function(t);
    function(layer.out);
    function(layer.wo);
  }
  [[nodiscard]] T5Layer at_device(const T5Layer& host) const {
    const auto room = [&](const at::Tensor& t) {
      return at::empty(t.sizes(), t.options().device(weights_.device).pinned_memory(false));
    };
    T5Layer layer = host;
    for (at::Tensor& t : layer.qkv) t = room(t);
    for (at::Tensor& t : layer.wi) t = room(t);
    layer.out = room(host.out);
    layer.wo = room(host.wo);
    return layer;
  }
  void fetch(std::size_t i) {
    Buffer& buffer = buffers_[i % 2];
    const T5Layer& host = weights_.layers[i];
    if (i >= 2) buffer.used.block(copy_);
    {
      const c10::StreamGuard on(copy_);
      const auto copy = [](const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from) {
        for (std::size_t t = 0; t < to.size(); ++t) to[t].copy_(from[t], /*non_blocking=*/true);
      };
      copy(buffer.layer.qkv, host.qkv);
      copy(buffer.layer.wi, host.wi);
      copy({buffer.layer.out, buffer.layer.wo}, {host.out, host.wo});
    }
    buffer.layer.attention_norm_D = host.attention_norm_D;
    buffer.layer.feed_forward_norm_D = host.feed_forward_norm_D;
    buffer.filled.record(copy_);
  }

  const T5Weights& weights_;
  c10::impl::VirtualGuardImpl guard_{c10::DeviceType::CUDA};
  c10::Stream compute_, copy_;
  Buffer buffers_[2];
};

}  // namespace

struct T5Network::State {
  T5Weights weights;
  at::Tensor no_bias;  // zeros, d_ff
  std::int64_t batch_tokens = 0;

  [[nodiscard]] at::Tensor norm(const at::Tensor& x_TD, const at::Tensor& weight_D) const {
    return at::rms_norm(x_TD, {x_TD.size(1)}, weight_D, weights.config.epsilon);
  }

  [[nodiscard]] at::Tensor embed(const std::vector<std::int64_t>& ids) const {
    const at::Tensor index = to_device(ids, weights.embedding_VD.device());
    return weights.embedding_VD.index_select(0, index).to(weights.device).to(at::kFloat);
  }

  [[nodiscard]] PlannedGroup plan_group(const AttentionGroup& group, const std::vector<std::int64_t>& lengths,
                                        std::int64_t first_token) const {
    PlannedGroup plan{.group = group, .first_token = first_token};
    std::vector<std::int64_t> gather, scatter;
    const auto first = lengths.begin() + group.first;
    for (auto length = first; length != first + group.count; ++length) {
      const std::int64_t start = plan.num_tokens, row = static_cast<std::int64_t>(gather.size());
      for (std::int64_t i = 0; i < group.length; ++i) gather.push_back(start + (i < *length ? i : 0));
      for (std::int64_t i = 0; i < *length; ++i) scatter.push_back(row + i);
      plan.num_tokens += *length;
    }
    plan.bias_NHLL = bias_of_length(weights.bias_HO, group.length).unsqueeze(0);
    if (group.equal) return plan;
    plan.gather_NL = to_device(gather, weights.device);
    plan.scatter_T = to_device(scatter, weights.device);
    const at::Tensor lengths_N1 = to_device({first, first + group.count}, weights.device).unsqueeze(1);
    // Made at the padded width, so that rows keep their alignment.
    const at::Tensor wide_HLP = plan.bias_NHLL[0].as_strided(
        {weights.config.num_heads, group.length, plan.bias_NHLL.stride(2)}, plan.bias_NHLL[0].strides());
    const at::Tensor keys_P = at::arange(wide_HLP.size(2), lengths_N1.options());
    const at::Tensor outside_N11P = keys_P.unsqueeze(0).ge(lengths_N1).unsqueeze(1).unsqueeze(1);
    plan.bias_NHLL = wide_HLP.unsqueeze(0)
                         .masked_fill(outside_N11P, -std::numeric_limits<double>::infinity())
                         .narrow(3, 0, group.length);
    return plan;
  }

  [[nodiscard]] Batch plan(const Captions& captions) const {
    Batch batch;
    std::vector<std::int64_t> ids;
    for (const auto* caption : captions) {
      ids.insert(ids.end(), caption->begin(), caption->end());
      batch.lengths.push_back(static_cast<std::int64_t>(caption->size()));
    }
    batch.x_TD = embed(ids);
    const T5Config& config = weights.config;
    const auto element = static_cast<std::int64_t>(c10::elementSize(weights.dtype));
    GroupCosts costs{.row_bytes = 4 * config.inner() * element, .heads = config.num_heads, .element_bytes = element};
    costs.call_bytes = weights.device.is_cpu() ? 5e4 : 4e7;  // some microseconds of each one's memory bandwidth
    std::int64_t first_token = 0;
    for (const AttentionGroup& group : group_captions(batch.lengths, costs)) {
      batch.groups.push_back(plan_group(group, batch.lengths, first_token));
      first_token += batch.groups.back().num_tokens;
    }
    return batch;
  }

  // qkv [T, 3 H d] -> [T, H d], softmax in float inside the kernel.
  [[nodiscard]] at::Tensor attend(const at::Tensor& qkv, const Batch& batch) const {
    const T5Config& config = weights.config;
    std::vector<at::Tensor> parts;
    for (const PlannedGroup& plan : batch.groups) {
      at::Tensor rows = qkv.narrow(0, plan.first_token, plan.num_tokens);
      if (plan.gather_NL.defined()) rows = rows.index_select(0, plan.gather_NL);
      const at::Tensor heads = rows.view({plan.group.count, plan.group.length, 3, config.num_heads, config.d_kv});
      const auto part = [&](std::int64_t i) { return heads.select(2, i).transpose(1, 2); };
      const at::Tensor bias = plan.bias_NHLL.expand({plan.group.count, -1, -1, -1});
      at::Tensor out = at::scaled_dot_product_attention(part(0), part(1), part(2), bias, 0.0, false, 1.0);
      out = out.transpose(1, 2).reshape({plan.group.count * plan.group.length, config.inner()});
      if (plan.scatter_T.defined()) out = out.index_select(0, plan.scatter_T);
      parts.push_back(std::move(out));
    }
    return parts.size() == 1 ? parts.front() : at::cat(parts);
  }

  void run_layer(const T5Layer& layer, Batch& batch) const {
    at::Tensor y = norm(batch.x_TD, layer.attention_norm_D).to(weights.dtype);
    batch.x_TD.add_(at::mm(attend(project(y, layer.qkv), batch), layer.out.t()));
    y = norm(batch.x_TD, layer.feed_forward_norm_D).to(weights.dtype);
    at::Tensor hidden = activated(y, layer.wi[0], no_bias, weights.config.activation);
    if (layer.wi.size() == 2) hidden.mul_(at::mm(y, layer.wi[1].t()));
    batch.x_TD.add_(at::mm(hidden, layer.wo.t()));
  }

  void run(std::vector<Batch>& batches) const {
    std::optional<LayerStream> stream;
    if (weights.streamed) stream.emplace(weights);
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      const T5Layer& layer = stream ? stream->layer(i) : weights.layers[i];
      for (Batch& batch : batches) run_layer(layer, batch);
    }
    for (Batch& batch : batches) batch.x_TD = norm(batch.x_TD, weights.final_norm_D);
  }
};

T5Network::T5Network(T5Weights weights) : state_(std::make_unique<State>()) {
  state_->no_bias = at::zeros({weights.config.d_ff}, at::TensorOptions(weights.dtype).device(weights.device));
  state_->batch_tokens = tokens_of_batch(weights);
  state_->weights = std::move(weights);
}
T5Network::~T5Network() = default;
T5Network::T5Network(T5Network&&) noexcept = default;

const T5Config& T5Network::config() const { return state_->weights.config; }

std::vector<at::Tensor> T5Network::encode(const std::vector<std::vector<std::int32_t>>& captions) const {
  const at::NoGradGuard no_grad;
  for (const auto& caption : captions) {
    const bool fits = !caption.empty() && caption.size() <= static_cast<std::size_t>(kMaxLength) &&
                      std::all_of(caption.begin(), caption.end(),
                                  [&](std::int32_t id) { return id >= 0 && id < config().vocab_size; });
    if (!fits) {
      throw InternalError("T5: got a caption of {} ids, want 1 to {} ids below {}", caption.size(), kMaxLength,
                          config().vocab_size);
    }
  }
  std::vector<std::size_t> order(captions.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return captions[a].size() < captions[b].size(); });
  // Each layer that comes from host memory serves several batches.
  const std::size_t batches_at_once = state_->weights.streamed ? 4 : 1;
  std::vector<at::Tensor> result(captions.size());
  for (std::size_t done = 0; done < order.size();) {
    std::vector<Batch> batches;
    std::size_t next = done;
    while (next < order.size() && batches.size() < batches_at_once) {
      Captions chosen;
      std::size_t tokens = 0;
      const auto room = static_cast<std::size_t>(state_->batch_tokens);
      while (next < order.size() && (chosen.empty() || tokens + captions[order[next]].size() <= room)) {
        chosen.push_back(&captions[order[next++]]);
        tokens += chosen.back()->size();
      }
      batches.push_back(state_->plan(chosen));
    }
    state_->run(batches);
    for (const Batch& batch : batches) {
      for (const at::Tensor& rows_LD : batch.x_TD.split_with_sizes(batch.lengths)) result[order[done++]] = rows_LD;
    }
  }
  return result;
}

}  // namespace dfm::models
