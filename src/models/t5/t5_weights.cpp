// Where T5's parameters lie: names and shapes, and how they get from a file to the device.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/log.h"
#include "models/t5/position_bias.h"
#include "models/t5/t5_network.h"

namespace dfm::models {
namespace {

std::string layer_name(std::int64_t layer, const char* rest) { return fmt::format("block.{}.layer.{}", layer, rest); }

// Puts matrices where the network wants them, one at a time: converted on the way, never two copies on the host.
class Placer {
 public:
  Placer(const ReadT5Tensor& read, at::Device device, at::ScalarType dtype, bool offload)
      : read_(read), device_(device), dtype_(dtype), streamed_(offload && !device.is_cpu()) {}

  [[nodiscard]] at::Tensor on_device(const std::string& name, at::ScalarType dtype) const {
    return read_(name).to(device_, dtype);
  }
  [[nodiscard]] at::Tensor matrix(const std::string& name) const { return merged({name}).front(); }

  // Matrices over one another as one, so that one multiplication does for all; but views of a file stay as they are.
  [[nodiscard]] std::vector<at::Tensor> merged(const std::vector<std::string>& names) const {
    std::vector<at::Tensor> parts;
    at::Tensor whole;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const at::Tensor part = read_(names[i]);
      if (device_.is_cpu() && part.scalar_type() == dtype_ && part.is_contiguous() && !whole.defined()) {
        parts.push_back(part);
        continue;
      }
      if (!parts.empty() || names.size() == 1) {  // files may mix dtypes
        parts.push_back(place(part));
        continue;
      }
      if (!whole.defined()) whole = room({part.size(0) * static_cast<std::int64_t>(names.size()), part.size(1)});
      whole.narrow(0, static_cast<std::int64_t>(i) * part.size(0), part.size(0)).copy_(part);
    }
    if (whole.defined()) parts = {whole};
    return parts;
  }

 private:
  [[nodiscard]] at::Tensor room(at::IntArrayRef shape) const {
    if (!streamed_) return at::empty(shape, at::TensorOptions(dtype_).device(device_));
    if (pinned_) {
      try {
        return at::empty(shape, at::TensorOptions(dtype_).pinned_memory(true));
      } catch (const c10::Error&) {
        pinned_ = false;
        log::warning("text encoder", "no more memory can be pinned; the rest of the weights reaches the GPU slower");
      }
    }
    return at::empty(shape, at::TensorOptions(dtype_));
  }
  [[nodiscard]] at::Tensor place(const at::Tensor& part) const {
    const at::Tensor placed = room(part.sizes());
    placed.copy_(part);
    return placed;
  }

  const ReadT5Tensor& read_;
  at::Device device_;
  at::ScalarType dtype_;
  bool streamed_;
  mutable bool pinned_ = true;
};

}  // namespace

std::vector<T5Parameter> t5_parameters(const T5Config& config) {
  const std::int64_t inner = config.inner();
  std::vector<T5Parameter> result = {{"embed_tokens.weight", {config.vocab_size, config.d_model}}};
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    for (const char* name : {"q", "k", "v"}) {
      result.push_back({layer_name(i, "0.SelfAttention.") + name + ".weight", {inner, config.d_model}});
    }
    result.push_back({layer_name(i, "0.SelfAttention.o.weight"), {config.d_model, inner}});
    if (i == 0) {
      result.push_back(
          {layer_name(i, "0.SelfAttention.relative_attention_bias.weight"), {config.num_buckets, config.num_heads}});
    }
    result.push_back({layer_name(i, "0.layer_norm.weight"), {config.d_model}});
    if (config.gated) {
      result.push_back({layer_name(i, "1.DenseReluDense.wi_0.weight"), {config.d_ff, config.d_model}});
      result.push_back({layer_name(i, "1.DenseReluDense.wi_1.weight"), {config.d_ff, config.d_model}});
    } else {
      result.push_back({layer_name(i, "1.DenseReluDense.wi.weight"), {config.d_ff, config.d_model}});
    }
    result.push_back({layer_name(i, "1.DenseReluDense.wo.weight"), {config.d_model, config.d_ff}});
    result.push_back({layer_name(i, "1.layer_norm.weight"), {config.d_model}});
  }
  result.push_back({"final_layer_norm.weight", {config.d_model}});
  return result;
}

T5Weights load_t5_weights(const T5Config& config, const ReadT5Tensor& read, at::Device device, at::ScalarType dtype,
                          bool offload) {
  const Placer placer(read, device, dtype, offload);
  T5Weights weights{.config = config, .device = device, .dtype = dtype, .streamed = offload && !device.is_cpu()};
  weights.embedding_VD = placer.matrix("embed_tokens.weight");
  const at::Tensor table_BH = placer.on_device(layer_name(0, "0.SelfAttention.relative_attention_bias.weight"), dtype);
  weights.bias_HO =
      bias_of_distances(table_BH, position_buckets(config.num_buckets, config.max_distance, T5Network::kMaxLength));
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    T5Layer layer;
    layer.attention_norm_D = placer.on_device(layer_name(i, "0.layer_norm.weight"), at::kFloat);
    layer.qkv = placer.merged({layer_name(i, "0.SelfAttention.q.weight"), layer_name(i, "0.SelfAttention.k.weight"),
                               layer_name(i, "0.SelfAttention.v.weight")});
    layer.out = placer.matrix(layer_name(i, "0.SelfAttention.o.weight"));
    layer.feed_forward_norm_D = placer.on_device(layer_name(i, "1.layer_norm.weight"), at::kFloat);
    if (config.gated) {
      layer.wi = {placer.matrix(layer_name(i, "1.DenseReluDense.wi_0.weight")),
                  placer.matrix(layer_name(i, "1.DenseReluDense.wi_1.weight"))};
    } else {
      layer.wi = {placer.matrix(layer_name(i, "1.DenseReluDense.wi.weight"))};
    }
    layer.wo = placer.matrix(layer_name(i, "1.DenseReluDense.wo.weight"));
    weights.layers.push_back(std::move(layer));
  }
  weights.final_norm_D = placer.on_device("final_layer_norm.weight", at::kFloat);
  return weights;
}

ReadT5Tensor random_t5_tensors(const T5Config& config, at::Device device, at::ScalarType dtype) {
  return [config, device, dtype, parameters = t5_parameters(config)](const std::string& name) {
    const auto found =
        std::find_if(parameters.begin(), parameters.end(), [&](const T5Parameter& p) { return p.name == name; });
    const at::TensorOptions options = at::TensorOptions(dtype).device(device);
    if (found->shape.size() == 1) return at::ones(found->shape, options);
    double deviation = 1 / std::sqrt(static_cast<double>(config.d_model));
    if (name.ends_with(".q.weight")) deviation /= std::sqrt(static_cast<double>(config.d_kv));
    if (name.ends_with(".o.weight")) deviation = 1 / std::sqrt(static_cast<double>(config.inner()));
    if (name.ends_with(".wo.weight")) deviation = 1 / std::sqrt(static_cast<double>(config.d_ff));
    if (name == "embed_tokens.weight") deviation = 1;
    return at::empty(found->shape, options).normal_(0, deviation);
  };
}

}  // namespace dfm::models
