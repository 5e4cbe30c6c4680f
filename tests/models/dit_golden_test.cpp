// The DiT against numbers of NVIDIA NeMo DFM's, layer by layer: see the README beside the golden files.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "dfm/base/hash.h"
#include "dfm/formats/torch_file.h"
#include "dfm/models/dit/dit.h"
#include "dfm/models/patch.h"
#include "support/files.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

// Tensors of a golden file by name.
class Case {
 public:
  explicit Case(const std::filesystem::path& path) {
    for (auto& [name, tensor] : formats::named_tensors(formats::load_torch_file(path))) tensors_.emplace(name, tensor);
  }
  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }
  [[nodiscard]] const at::Tensor& at(const std::string& name) const { return tensors_.at(name); }
  [[nodiscard]] const std::map<std::string, at::Tensor>& all() const { return tensors_; }

 private:
  std::map<std::string, at::Tensor> tensors_;
};

class DitGolden : public testing::Test {
 protected:
  void SetUp() override {
    const auto folder = test::golden_dir();
    if (!folder) GTEST_SKIP() << "no DFM_GOLDEN_DIR and no shared/golden";
    folder_ = *folder / "dfm";
  }
  std::filesystem::path folder_;
};

DitConfig config_of(const NamedTensors& weights) {
  DitConfig config;
  config.num_layers = 0;
  std::int64_t head_dim = 1;
  for (const auto& [name, tensor] : weights) {
    if (name.ends_with("full_self_attention.linear_qkv.weight")) ++config.num_layers;
    if (name == "x_embedder.weight") config.hidden_size = tensor.size(0);
    if (name == "decoder.layers.0.full_self_attention.q_layernorm.weight") head_dim = tensor.size(0);
    if (name == "decoder.layers.0.cross_attention.linear_kv.weight") config.crossattn_emb_size = tensor.size(1);
  }
  config.num_attention_heads = config.hidden_size / head_dim;
  return config;
}

NamedTensors model_weights(const std::filesystem::path& folder) {
  return formats::named_tensors(formats::load_torch_file(folder / "model.pt"));
}

Dit make_model(const NamedTensors& weights, at::ScalarType dtype, Recompute recompute = Recompute::kNone) {
  DitConfig config = config_of(weights);
  config.recompute_granularity = recompute;
  Dit model(config, dtype, at::kCPU, 1);
  model.load(weights, "golden");
  return model;
}

struct Options {
  bool has_text = true;
  double fps = 30;
  std::int64_t padding = 0;  // rows after the last segment
  std::string x_key = "x_in";
};

DitInput make_input(const Case& data, at::ScalarType dtype, const Options& options = {}) {
  const at::Tensor lengths = data.at("seq_len");
  const std::int64_t num_segments = lengths.size(0);
  std::vector<std::int64_t> token_lengths, text_lengths;
  std::vector<at::Tensor> text;
  for (std::int64_t i = 0; i < num_segments; ++i) {
    token_lengths.push_back(lengths[i].item<std::int64_t>());
    const at::Tensor rows = data.at("text." + std::to_string(i));
    text.push_back(options.has_text ? rows : rows.narrow(0, 0, 0));
    text_lengths.push_back(text.back().size(0));
  }
  DitInput input;
  input.x_TC = at::constant_pad_nd(data.at(options.x_key).to(dtype), {0, 0, 0, options.padding});
  input.tokens = parallel::RowSegments::make(token_lengths, {}, at::kCPU, input.x_TC.size(0));
  input.position_T3 = at::constant_pad_nd(data.at("pos_ids"), {0, 0, 0, options.padding});
  const at::ScalarType wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  input.c_noise_N = data.at("timesteps").to(wide).expand({num_segments});
  input.fps_N = at::full({num_segments}, options.fps, wide);
  input.text_LE = at::cat(text).to(dtype);
  input.text = ops::Segments::from_lengths(text_lengths);
  return input;
}

void expect_near(const at::Tensor& got, const at::Tensor& want, double tolerance, const std::string& name) {
  EXPECT_LT(test::relative_error(got, want), tolerance) << name;
}

// What the file says of the gradient of one parameter: all of it, or every 61st value and the norm.
void expect_gradient(const Case& data, const std::string& name, const at::Tensor& gradient, double tolerance) {
  if (data.has("grad." + name)) {
    expect_near(gradient, data.at("grad." + name), tolerance, "grad." + name);
    return;
  }
  ASSERT_TRUE(data.has("grad_every61." + name)) << name;
  expect_near(gradient.flatten().slice(0, 0, std::nullopt, 61), data.at("grad_every61." + name), tolerance, name);
  expect_near(gradient.to(at::kDouble).norm().view({1}), data.at("grad_norm." + name), tolerance, name + " norm");
}

void compare_trace(const Case& data, const Dit::Trace& trace, double tolerance, std::int64_t num_tokens) {
  std::size_t compared = 0;
  for (const auto& [name, value] : trace.tensors) {
    if (!data.has(name)) continue;
    const at::Tensor want = data.at(name);
    // A shared sigma is stored once.
    const bool is_per_token = value.size(0) >= num_tokens && want.size(0) == num_tokens;
    expect_near(value.narrow(0, 0, is_per_token ? num_tokens : want.size(0)), want, tolerance, name);
    ++compared;
  }
  EXPECT_EQ(compared, trace.tensors.size());
}

void compare_case(const Case& data, const NamedTensors& weights, at::ScalarType dtype, const test::Tolerance& tolerance,
                  Recompute recompute = Recompute::kNone, std::int64_t padding = 0) {
  const Dit model = make_model(weights, dtype, recompute);
  DitInput input = make_input(data, dtype, {.padding = padding});
  input.x_TC.set_requires_grad(true);
  const std::int64_t num_tokens = input.tokens.row.num_tokens();
  Dit::Trace trace;
  const at::Tensor out = recompute == Recompute::kNone ? model.forward(input, &trace) : model.forward(input);
  EXPECT_TRUE(at::isfinite(out).all().item<bool>());
  expect_near(out.narrow(0, 0, num_tokens), data.at("out"), tolerance.forward, "out");
  if (recompute == Recompute::kNone) compare_trace(data, trace, tolerance.forward, num_tokens);

  std::vector<at::Tensor> wanted{input.x_TC};
  for (const auto& [name, parameter] : model.parameters()) wanted.push_back(parameter);
  const at::Tensor cotangent = at::constant_pad_nd(data.at("cotangent").to(dtype), {0, 0, 0, padding});
  const std::vector<at::Tensor> found = torch::autograd::grad({out}, wanted, {cotangent});
  expect_near(found[0].narrow(0, 0, num_tokens), data.at("grad_x"), tolerance.input_gradient, "grad_x");
  for (std::size_t i = 1; i < found.size(); ++i) {
    expect_gradient(data, model.parameters()[i - 1].first, found[i], tolerance.parameter_gradient);
  }
}

// The files hold float32: a float64 run is compared at that precision, with the error of float32 sinusoids on top.
constexpr test::Tolerance kStored{3e-6, 3e-6, 6e-6};

TEST_F(DitGolden, ReproducesAPackedRowWithOneSigma) {
  const Case data(folder_ / "pack_shared_sigma.pt");
  compare_case(data, model_weights(folder_), at::kFloat, test::tolerance(at::kFloat));
}

TEST_F(DitGolden, ReproducesAPackedRowWithASigmaForEachSegment) {
  const Case data(folder_ / "pack_own_sigma.pt");
  compare_case(data, model_weights(folder_), at::kFloat, test::tolerance(at::kFloat));
}

TEST_F(DitGolden, PaddingRowsChangeNothing) {
  const Case data(folder_ / "pack_own_sigma.pt");
  compare_case(data, model_weights(folder_), at::kFloat, test::tolerance(at::kFloat), Recompute::kNone, 22);
}

TEST_F(DitGolden, RecomputeChangesNothing) {
  const Case data(folder_ / "pack_own_sigma.pt");
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    SCOPED_TRACE(config::enum_name(recompute));
    compare_case(data, model_weights(folder_), at::kFloat, test::tolerance(at::kFloat), recompute, 6);
  }
}

TEST_F(DitGolden, AgreesInFloat64) {
  const NamedTensors weights = model_weights(folder_);
  for (const char* file : {"pack_shared_sigma.pt", "pack_own_sigma.pt", "single.pt"}) {
    SCOPED_TRACE(file);
    compare_case(Case(folder_ / file), weights, at::kDouble, kStored);
  }
}

TEST_F(DitGolden, ReproducesASingleSegmentItsTextDroppedAndAnotherFrameRate) {
  const Case data(folder_ / "single.pt");
  const NamedTensors weights = model_weights(folder_);
  compare_case(data, weights, at::kFloat, test::tolerance(at::kFloat));
  const Dit model = make_model(weights, at::kFloat);
  const double tolerance = test::tolerance(at::kFloat).forward;
  expect_near(model.forward(make_input(data, at::kFloat, {.has_text = false})), data.at("no_text.out"), tolerance,
              "no_text.out with gradients on");
  expect_near(model.forward(make_input(data, at::kFloat, {.fps = 24})), data.at("fps24.out"), tolerance, "fps24.out");
  const at::NoGradGuard no_grad;
  expect_near(model.forward(make_input(data, at::kFloat, {.has_text = false})), data.at("no_text.out"), tolerance,
              "no_text.out with the branch left out");
}

// bfloat16 rounds after each operation, here in other places than in DFM.
TEST_F(DitGolden, Bfloat16IsAsNearAsItsRounding) {
  const NamedTensors weights = model_weights(folder_);
  for (const char* file : {"pack_shared_sigma.pt", "pack_own_sigma.pt", "single.pt"}) {
    SCOPED_TRACE(file);
    const Case data(folder_ / file);
    const Dit model = make_model(weights, at::kBFloat16);
    const at::NoGradGuard no_grad;
    const at::Tensor out = model.forward(make_input(data, at::kBFloat16, {.x_key = "bf16.x_in"}));
    expect_near(out, data.at("bf16.out"), test::tolerance(at::kBFloat16).forward, "bf16.out");
  }
}

// The weights of wide.pt: a formula in the parameter's name, described in the README of the golden files.
at::Tensor formula_weights(const std::string& name, const at::Tensor& like, double scale) {
  constexpr std::uint64_t kKey = 0x5EED0001;
  const std::uint64_t hash = fnv1a64(name);
  const at::Tensor value = at::empty(like.sizes(), at::kFloat);
  float* const values = value.data_ptr<float>();
  for (std::int64_t i = 0; i < value.numel(); ++i) {
    std::uint64_t z = (hash ^ kKey) + (static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    const float r = static_cast<float>(z >> 40) * 0x1p-23F - 1.0F;
    const bool is_norm = name.find("norm") != std::string::npos;
    values[i] = is_norm ? 1.0F + 0.25F * r : name.ends_with("bias") ? 0.25F * r : static_cast<float>(scale) * r;
  }
  return value;
}

TEST_F(DitGolden, ReproducesAWideModelWithFormulaWeights) {
  const Case data(folder_ / "wide.pt");
  DitConfig config;
  config.num_layers = 0;
  for (const auto& [name, tensor] : data.all()) {
    if (name.starts_with("weight_scale.") && name.ends_with("linear_qkv.weight")) ++config.num_layers;
  }
  config.hidden_size = data.at("embed").size(1);
  config.crossattn_emb_size = data.at("text.0").size(1);
  config.num_attention_heads =
      config.hidden_size / data.at("grad.decoder.layers.0.full_self_attention.q_layernorm.weight").size(0);
  NamedTensors weights;
  for (const auto& [name, parameter] : initial_parameters(config, at::kFloat, at::kCPU, 1)) {
    const std::string scale_name = "weight_scale." + name;
    const double scale = data.has(scale_name) ? data.at(scale_name).item<double>() : 0;
    weights.emplace_back(name, formula_weights(name, parameter, scale));
    EXPECT_TRUE(at::equal(weights.back().second.flatten().narrow(0, 0, 4), data.at("weight_head." + name))) << name;
  }
  compare_case(data, weights, at::kFloat, test::tolerance(at::kFloat));
  compare_case(data, weights, at::kDouble, kStored);
}

}  // namespace
}  // namespace dfm::models
