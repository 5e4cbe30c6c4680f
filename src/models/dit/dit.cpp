#include "dfm/models/dit/dit.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <unordered_map>

#include "dfm/base/error.h"
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

// The groups' sizes may come from elsewhere than the config (generate --cp-size).
void check_layout(const DitConfig& config, const parallel::Parallel& parallel) {
  const std::int64_t heads = config.num_attention_heads;
  const int tensor = parallel.tensor->size(), context = parallel.context->size();
  if (heads % tensor != 0) {
    throw ConfigError("model.tensor_model_parallel_size: got {}, want a divisor of model.num_attention_heads = {}",
                      tensor, heads);
  }
  if (parallel.context_comm == parallel::ContextComm::kA2a && heads / tensor % context != 0) {
    throw ConfigError(
        "model.cp_comm_type: got a2a with {} context ranks, want a divisor of the {} heads of a tensor rank; hint: "
        "model.cp_comm_type=p2p takes any number",
        context, heads / tensor);
  }
}

}  // namespace

struct Dit::Parts {
  DitConfig config;
  at::ScalarType dtype;
  at::Device device;
  parallel::Parallel parallel;
  std::vector<ParameterSpec> specs;  // of `parameters`, in the same order
  NamedTensors parameters;
  Lookup by_name;
  std::function<void(int)> before_stage = [](int) {};
  Embedder time, fps;
  at::Tensor x_weight, x_bias, final_weight, final_bias;
  std::vector<DitLayer> layers;
  std::vector<std::vector<at::Tensor>> layer_parameters;  // what recompute hands gradients to
  std::unique_ptr<PositionCodes> positions;

  [[nodiscard]] at::Tensor condition(const DitInput& input, Trace* trace) const;
  [[nodiscard]] at::Tensor run_layer(std::size_t index, const at::Tensor& x_TD, const at::Tensor& condition_ND,
                                     const DitInput& input, Trace* trace) const;
};

Dit::Dit(const DitConfig& config, at::ScalarType dtype, at::Device device, std::uint64_t seed,
         const parallel::Parallel& parallel)
    : parts_(std::make_unique<Parts>(Parts{.config = config, .dtype = dtype, .device = device, .parallel = parallel})) {
  check_layout(config, parallel);
  Parts& parts = *parts_;
  parts.specs = dit_parameter_specs(config);
  for (const ParameterSpec& spec : parts.specs) {
    // The whole value goes when its part has been taken: one whole tensor at a time beside the model.
    at::Tensor part = parallel::part_of(initial_value(spec, dtype, device, seed), spec.split_dim, parallel);
    if (part.storage().nbytes() > part.nbytes()) part = part.clone(at::MemoryFormat::Contiguous);
    part.set_requires_grad(true);
    parts.parameters.emplace_back(spec.name, part);
    parts.by_name.emplace(spec.name, part);
  }
  parts.time = find_embedder(parts.by_name, "t_embedder");
  parts.fps = find_embedder(parts.by_name, "fps_embedder");
  parts.x_weight = parts.by_name.at("x_embedder.weight");
  parts.x_bias = parts.by_name.at("x_embedder.bias");
  parts.final_weight = parts.by_name.at("final_layer_linear.weight");
  parts.final_bias = parts.by_name.at("final_layer_linear.bias");
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::vector<at::Tensor>& used = parts.layer_parameters.emplace_back();
    parts.layers.emplace_back(config, parallel, [&](const std::string& name) {
      return used.emplace_back(parts.by_name.at(layer_prefix(layer) + name));
    });
  }
  parts.positions = std::make_unique<PositionCodes>(config.hidden_size, dtype, device);
}
Dit::~Dit() = default;
Dit::Dit(Dit&&) noexcept = default;

const NamedTensors& Dit::parameters() const { return parts_->parameters; }
const DitConfig& Dit::config() const { return parts_->config; }
const parallel::Parallel& Dit::parallel() const { return parts_->parallel; }

// Which gradients are partial. A head norm's weight is one for all heads, of which a tensor rank sees its own. With
// sequence parallelism a tensor rank sees its own tokens alone before, after and between the matrices: so do the
// embedding of tokens, the final layer, and, because the modulation's gradient is a sum over tokens, adaLN and the
// embedders behind it. Without it all of these see every token of the context rank, and the region before a column
// layer has summed what comes back from the heads.
std::vector<parallel::Parameter> Dit::placed_parameters() const {
  const bool is_split = !parts_->parallel.tensor->is_alone();
  std::vector<parallel::Parameter> placed;
  for (std::size_t i = 0; i < parts_->specs.size(); ++i) {
    const ParameterSpec& spec = parts_->specs[i];
    const bool is_replicated = spec.split_dim < 0;
    placed.push_back({.name = spec.name,
                      .tensor = parts_->parameters[i].second,
                      .shape = spec.shape,
                      .split_dim = spec.split_dim,
                      .is_partial = is_split && is_replicated && (spec.is_head_norm || parts_->parallel.sequence),
                      .stage = spec.stage});
  }
  return placed;
}

void Dit::set_before_stage(std::function<void(int stage)> before_stage) {
  parts_->before_stage = before_stage ? std::move(before_stage) : [](int) {};
}

NamedTensors Dit::constant_tensors(at::ScalarType dtype) const {
  const std::int64_t width = parts_->config.hidden_size;
  return {{"pos_embedder.pos_embedding.weight", position_table(kTableFrames, kTableSide, kTableSide, width).to(dtype)},
          {"affline_norm.weight", at::ones({width}, dtype)}};
}

void Dit::load(const NamedTensors& tensors, const std::string& where) {
  std::unordered_map<std::string, const ParameterSpec*> specs;
  for (const ParameterSpec& spec : parts_->specs) specs.emplace(spec.name, &spec);
  std::vector<std::string> problems;
  std::unordered_map<std::string, at::Tensor> given;
  for (const auto& [name, tensor] : to_model_names(tensors)) {
    const auto known = specs.find(name);
    if (known == specs.end()) {
      problems.push_back(name + " is unknown");
    } else if (tensor.sizes() != at::IntArrayRef(known->second->shape)) {
      problems.push_back(
          fmt::format("{} is {}, want {}", name, fmt::join(tensor.sizes(), "x"), fmt::join(known->second->shape, "x")));
    } else if (!given.emplace(name, tensor).second) {
      problems.push_back(name + " is there twice");
    }
  }
  for (const ParameterSpec& spec : parts_->specs) {
    const bool is_misshapen =
        std::any_of(problems.begin(), problems.end(),
                    [wanted = spec.name + " is "](const auto& p) { return p.starts_with(wanted); });
    if (!given.contains(spec.name) && !is_misshapen) problems.push_back(spec.name + " is missing");
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
  for (const auto& [name, tensor] : given) {
    parts_->by_name.at(name).copy_(parallel::part_of(tensor, specs.at(name)->split_dim, parts_->parallel));
  }
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
  if (config.recompute_granularity != Recompute::kFull || !at::GradMode::is_enabled() || trace != nullptr) {
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
  const std::int64_t num_tokens = input.tokens.local_length;
  const std::int64_t num_segments = input.tokens.row.num_segments();
  if (input.x_TC.size(0) != num_tokens || input.position_T3.size(0) != num_tokens ||
      input.x_TC.size(1) != parts.config.token_channels() || input.c_noise_N.size(0) != num_segments ||
      input.fps_N.size(0) != num_segments || input.text.num_segments() != num_segments ||
      input.text_LE.size(1) != parts.config.crossattn_emb_size) {
    throw InternalError("dit: got x {}, positions {}, text {}, want {} rows and {} segments that agree",
                        fmt::join(input.x_TC.sizes(), "x"), fmt::join(input.position_T3.sizes(), "x"),
                        fmt::join(input.text_LE.sizes(), "x"), num_tokens, num_segments);
  }
  // Called here, not in what recompute runs again: in backward all parameters are there.
  parts.before_stage(0);
  const at::Tensor condition_ND = at::silu(parts.condition(input, trace));
  at::Tensor x_TD = at::linear(input.x_TC, parts.x_weight, parts.x_bias) + parts.positions->lookup(input.position_T3);
  if (trace != nullptr) trace->tensors.emplace_back("embed", x_TD);
  for (std::size_t i = 0; i < parts.layers.size(); ++i) {
    parts.before_stage(static_cast<int>(i) + 1);
    x_TD = parts.run_layer(i, x_TD, condition_ND, input, trace);
  }
  parts.before_stage(static_cast<int>(parts.layers.size()) + 1);
  return at::linear(x_TD, parts.final_weight, parts.final_bias);
}

}  // namespace dfm::models
