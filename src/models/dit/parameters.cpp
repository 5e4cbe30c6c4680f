#include "models/dit/parameters.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dfm/base/hash.h"
#include "dfm/base/philox.h"
#include "dfm/ops/philox_normal.h"

namespace dfm::models {
namespace {

using Start = ParameterSpec::Start;
constexpr std::int64_t kAdaLnWidth = 256;
constexpr std::int64_t kFpsWidth = 256;
constexpr double kNormalStd = 0.02;  // Megatron's init_method_std

// torch.nn.Linear's default: weight and bias uniform within 1 / sqrt(fan_in).
void add_linear(std::vector<ParameterSpec>& specs, int stage, const std::string& name, std::int64_t out,
                std::int64_t in) {
  const double bound = 1 / std::sqrt(static_cast<double>(in));
  specs.push_back({name + ".weight", {out, in}, Start::kUniform, bound, -1, stage});
  specs.push_back({name + ".bias", {out}, Start::kUniform, bound, -1, stage});
}

void add_layer(std::vector<ParameterSpec>& specs, const DitConfig& config, std::int64_t layer) {
  const std::int64_t d = config.hidden_size;
  const double out_std = kNormalStd / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  const auto add = [&, prefix = layer_prefix(layer), stage = static_cast<int>(layer) + 1](
                       const std::string& name, std::vector<std::int64_t> shape, Start start, double scale,
                       int split_dim = -1) -> ParameterSpec& {
    return specs.emplace_back(ParameterSpec{prefix + name, std::move(shape), start, scale, split_dim, stage});
  };
  const auto add_column = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    add(name, {out, in}, Start::kNormal, kNormalStd, 0);
  };
  const auto add_row = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    add(name, {out, in}, Start::kNormal, out_std, 1);
  };
  const auto add_head_norm = [&](const std::string& name) {
    add(name, {config.head_dim()}, Start::kOne, 0).is_head_norm = true;
  };
  add_row("cross_attention.linear_proj.weight", d, d);
  add_column("cross_attention.linear_q.weight", d, d);
  add_column("cross_attention.linear_kv.weight", 2 * d, config.crossattn_emb_size);
  add_head_norm("cross_attention.q_layernorm.weight");
  add_head_norm("cross_attention.k_layernorm.weight");
  add_column("mlp.linear_fc1.weight", 4 * d, d);
  add_row("mlp.linear_fc2.weight", d, 4 * d);
  add_row("full_self_attention.linear_proj.weight", d, d);
  add_column("full_self_attention.linear_qkv.weight", 3 * d, d);
  add_head_norm("full_self_attention.q_layernorm.weight");
  add_head_norm("full_self_attention.k_layernorm.weight");
  add("adaLN.adaLN_modulation.1.weight", {kAdaLnWidth, d}, Start::kUniform, 1 / std::sqrt(static_cast<double>(d)));
  add("adaLN.adaLN_modulation.2.weight", {9 * d, kAdaLnWidth}, Start::kZero, 0);
}

at::Tensor initial_float(const ParameterSpec& spec, at::Device device, std::uint64_t seed) {
  const at::TensorOptions options = at::TensorOptions(at::kFloat).device(device);
  if (spec.start == Start::kZero) return at::zeros(spec.shape, options);
  if (spec.start == Start::kOne) return at::ones(spec.shape, options);
  const std::uint64_t stream = fnv1a64(spec.name);
  if (spec.start == Start::kNormal) {
    at::Tensor value = at::empty(spec.shape, options);
    ops::philox_normal_(value, seed, stream, Purpose::kParameter);
    return value.mul_(spec.scale);
  }
  const at::Tensor value = at::empty(spec.shape, at::kFloat);
  float* const values = value.data_ptr<float>();
  for (std::int64_t i = 0; i < value.numel(); ++i) {
    const float uniform = philox_uniform(seed, stream, static_cast<std::uint64_t>(i), Purpose::kParameter);
    values[i] = static_cast<float>((2.0 * static_cast<double>(uniform) - 1.0) * spec.scale);
  }
  return value.to(device);
}

}  // namespace

std::string layer_prefix(std::int64_t layer) { return fmt::format("decoder.layers.{}.", layer); }

std::vector<ParameterSpec> dit_parameter_specs(const DitConfig& config) {
  std::vector<ParameterSpec> specs;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) add_layer(specs, config, layer);
  const std::int64_t d = config.hidden_size;
  const int last = static_cast<int>(config.num_layers) + 1;
  add_linear(specs, 0, "t_embedder.1.linear_1", d, d);
  add_linear(specs, 0, "t_embedder.1.linear_2", d, d);
  add_linear(specs, 0, "fps_embedder.1.linear_1", kFpsWidth, kFpsWidth);
  add_linear(specs, 0, "fps_embedder.1.linear_2", kFpsWidth, kFpsWidth);
  add_linear(specs, 0, "x_embedder", d, config.token_channels());
  add_linear(specs, last, "final_layer_linear", config.token_channels(), d);
  return specs;
}

at::Tensor initial_value(const ParameterSpec& spec, at::ScalarType dtype, at::Device device, std::uint64_t seed) {
  return initial_float(spec, device, seed).to(dtype);
}

NamedTensors initial_parameters(const DitConfig& config, at::ScalarType dtype, at::Device device, std::uint64_t seed) {
  NamedTensors parameters;
  for (const ParameterSpec& spec : dit_parameter_specs(config)) {
    parameters.emplace_back(spec.name, initial_value(spec, dtype, device, seed));
  }
  return parameters;
}

NamedTensors to_model_names(const NamedTensors& tensors) {
  constexpr std::string_view kModule = "module.";
  constexpr std::string_view kLayers = "decoder.layers.";
  NamedTensors result;
  for (const auto& [file_name, tensor] : tensors) {
    std::string name = file_name;
    while (name.starts_with(kModule)) name.erase(0, kModule.size());
    if (name.starts_with("pos_embedder.") || name.starts_with("affline_norm.") ||
        name.find("._extra_state") != std::string::npos) {
      continue;
    }
    const std::string rest = name.starts_with(kLayers) ? name.substr(kLayers.size()) : "";
    const bool is_stacked = !rest.empty() && (rest[0] < '0' || rest[0] > '9') && tensor.dim() > 0;
    if (!is_stacked) {
      result.emplace_back(name, tensor);
      continue;
    }
    // A stack of another height gives missing or unknown layers, which the caller reports.
    for (std::int64_t layer = 0; layer < tensor.size(0); ++layer) {
      result.emplace_back(layer_prefix(layer) + rest, tensor.select(0, layer));
    }
  }
  return result;
}

}  // namespace dfm::models
