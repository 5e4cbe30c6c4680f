#include "dfm/models/dit/dit.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <unordered_map>

#include "dfm/base/error.h"
#include "dfm/parallel/parallel.h"
#include "models/dit/embeddings.h"
#include "models/dit/layer.h"
#include "models/dit/parameters.h"
#include "models/dit/recompute.h"

namespace dfm::models {
namespace {

constexpr std::int64_t kFpsWidth = 256;
// DFM's frozen position table: what its weight files hold.
constexpr std::int64_t kTableFrames = 34, kTableSide = 40;

// Linear, SiLU, Linear.
struct Embedder {
  at::Tensor weight1, bias1, weight2, bias2;
  [[nodiscard]] at::Tensor forward(const at::Tensor& code) const {
    return at::linear(at::silu(at::linear(code.to(weight1.scalar_type()), weight1, bias1)), weight2, bias2);
  }
};

using Lookup = std::unordered_map<std::string, at::Tensor>;

Embedder find_embedder(const Lookup& by_name, const std::string& name) {
  return {by_name.at(name + ".1.linear_1.weight"), by_name.at(name + ".1.linear_1.bias"),
          by_name.at(name + ".1.linear_2.weight"), by_name.at(name + ".1.linear_2.bias")};
}

}  // namespace

struct Dit::Parts {
  DitConfig config;
  at::ScalarType dtype;
  at::Device device;
  NamedTensors parameters;
  Lookup by_name;
  Embedder time, fps;
  at::Tensor x_weight, x_bias, final_weight, final_bias;
  std::vector<DitLayer> layers;
  std::vector<std::vector<at::Tensor>> layer_parameters;  // what recompute hands gradients to
  std::unique_ptr<PositionCodes> positions;

  [[nodiscard]] at::Tensor condition(const DitInput& input, Trace* trace) const;
  [[nodiscard]] at::Tensor run_layer(std::size_t index, const at::Tensor& x_TD, const at::Tensor& condition_ND,
                                     const DitInput& input, Trace* trace) const;
};

Dit::Dit(const DitConfig& config, at::ScalarType dtype, at::Device device, std::uint64_t seed) {
  parts_ = std::make_unique<Parts>(Parts{
      config, dtype, device, initial_parameters(config, dtype, device, seed), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}});
  Parts& parts = *parts_;
  for (auto& [name, tensor] : parts.parameters) {
    tensor.set_requires_grad(true);
    parts.by_name.emplace(name, tensor);
  }
  parts.time = find_embedder(parts.by_name, "t_embedder");
  parts.fps = find_embedder(parts.by_name, "fps_embedder");
  parts.x_weight = parts.by_name.at("x_embedder.weight");
  parts.x_bias = parts.by_name.at("x_embedder.bias");
  parts.final_weight = parts.by_name.at("final_layer_linear.weight");
  parts.final_bias = parts.by_name.at("final_layer_linear.bias");
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::vector<at::Tensor>& used = parts.layer_parameters.emplace_back();
    parts.layers.emplace_back(config, parallel::Parallel{}, [&](const std::string& name) {
      return used.emplace_back(parts.by_name.at(layer_prefix(layer) + name));
    });
  }
  parts.positions = std::make_unique<PositionCodes>(config.hidden_size, dtype, device);
}
Dit::~Dit() = default;
Dit::Dit(Dit&&) noexcept = default;

const NamedTensors& Dit::parameters() const { return parts_->parameters; }
const DitConfig& Dit::config() const { return parts_->config; }

NamedTensors Dit::constant_tensors(at::ScalarType dtype) const {
  const std::int64_t width = parts_->config.hidden_size;
  return {{"pos_embedder.pos_embedding.weight", position_table(kTableFrames, kTableSide, kTableSide, width).to(dtype)},
          {"affline_norm.weight", at::ones({width}, dtype)}};
}

void Dit::load(const NamedTensors& tensors, const std::string& where) {
  std::vector<std::string> problems;
  std::unordered_map<std::string, at::Tensor> given;
  for (const auto& [name, tensor] : to_model_names(tensors)) {
    const auto known = parts_->by_name.find(name);
    if (known == parts_->by_name.end()) {
      problems.push_back(name + " is unknown");
    } else if (known->second.sizes() != tensor.sizes()) {
      problems.push_back(fmt::format("{} is {}, want {}", name, fmt::join(tensor.sizes(), "x"),
                                     fmt::join(known->second.sizes(), "x")));
    } else if (!given.emplace(name, tensor).second) {
      problems.push_back(name + " is there twice");
    }
  }
  for (const auto& [name, tensor] : parts_->parameters) {
    const bool is_misshapen = std::any_of(problems.begin(), problems.end(),
                                          [&, wanted = name + " is "](const auto& p) { return p.starts_with(wanted); });
    if (!given.contains(name) && !is_misshapen) problems.push_back(name + " is missing");
  }
  if (!problems.empty()) {
    constexpr std::size_t kMost = 12;
    const std::size_t count = problems.size();
    if (count > kMost) {
      problems.resize(kMost);
      problems.push_back(fmt::format("and {} more", count - kMost));
    }
    throw CheckpointError(
        "weights: got {} tensors that do not fit the model: {} ({}); hint: the model section must be "
        "that of the checkpoint",
        count, fmt::join(problems, "; "), where);
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : given) parts_->by_name.at(name).copy_(tensor);
}

at::Tensor Dit::Parts::condition(const DitInput& input, Trace* trace) const {
  const std::int64_t width = config.hidden_size;
  const at::ScalarType code_type = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor time_ND = sinusoid(input.c_noise_N.to(device, code_type), width, 0);
  const at::Tensor fps_NF = sinusoid(input.fps_N.to(device, code_type), kFpsWidth, 1);
  const at::Tensor time_mlp_ND = time.forward(time_ND);
  const at::Tensor fps_mlp_NF = fps.forward(fps_NF);
  const at::Tensor fps_mlp_ND =
      width < kFpsWidth ? fps_mlp_NF.narrow(1, 0, width) : at::constant_pad_nd(fps_mlp_NF, {0, width - kFpsWidth});
  at::Tensor condition_ND = time_mlp_ND + fps_mlp_ND;
  if (trace != nullptr) {
    for (const auto& [name, value] : NamedTensors{{"t_sinusoid", time_ND},
                                                  {"t_mlp", time_mlp_ND},
                                                  {"fps_sinusoid", fps_NF},
                                                  {"fps_mlp", fps_mlp_NF},
                                                  {"cond", condition_ND}}) {
      trace->tensors.emplace_back(name, value);
    }
  }
  return condition_ND;
}

at::Tensor Dit::Parts::run_layer(std::size_t index, const at::Tensor& x_TD, const at::Tensor& condition_ND,
                                 const DitInput& input, Trace* trace) const {
  const DitLayer& layer = layers[index];
  if (config.recompute_granularity == Recompute::kNone || !at::GradMode::is_enabled() || trace != nullptr) {
    return layer.forward(x_TD, condition_ND, input.text_LE, input.tokens, input.text, trace,
                         fmt::format("layer{}.", index));
  }
  return recompute(
      [&layer, tokens = input.tokens, text = input.text](const std::vector<at::Tensor>& inputs) {
        return layer.forward(inputs[0], inputs[1], inputs[2], tokens, text, nullptr, "");
      },
      {x_TD, condition_ND, input.text_LE}, layer_parameters[index]);
}

at::Tensor Dit::forward(const DitInput& input) const { return forward(input, nullptr); }

at::Tensor Dit::forward(const DitInput& input, Trace* trace) const {
  const Parts& parts = *parts_;
  const std::int64_t num_segments = input.tokens.num_segments();
  if (input.x_TC.size(0) != input.position_T3.size(0) || input.x_TC.size(1) != parts.config.token_channels() ||
      input.c_noise_N.size(0) != num_segments || input.fps_N.size(0) != num_segments ||
      input.text.num_segments() != num_segments || input.text_LE.size(1) != parts.config.crossattn_emb_size) {
    throw InternalError("dit: got x {}, positions {}, text {}, want rows and {} segments that agree",
                        fmt::join(input.x_TC.sizes(), "x"), fmt::join(input.position_T3.sizes(), "x"),
                        fmt::join(input.text_LE.sizes(), "x"), num_segments);
  }
  const at::Tensor condition_ND = at::silu(parts.condition(input, trace));
  at::Tensor x_TD = at::linear(input.x_TC, parts.x_weight, parts.x_bias) + parts.positions->lookup(input.position_T3);
  if (trace != nullptr) trace->tensors.emplace_back("embed", x_TD);
  for (std::size_t i = 0; i < parts.layers.size(); ++i) x_TD = parts.run_layer(i, x_TD, condition_ND, input, trace);
  return at::linear(x_TD, parts.final_weight, parts.final_bias);
}

}  // namespace dfm::models
