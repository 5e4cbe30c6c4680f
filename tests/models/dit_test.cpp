#include "dfm/models/dit/dit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "dfm/base/hash.h"
#include "dfm/base/philox.h"
#include "models/dit/embeddings.h"
#include "models/dit/recompute.h"
#include "support/errors.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

DitConfig small_config() {
  return {.num_layers = 2, .hidden_size = 48, .num_attention_heads = 2, .crossattn_emb_size = 20};
}

// adaLN starts at zero: without this no branch would have any effect.
Dit busy_model(const DitConfig& config, at::ScalarType dtype = at::kDouble) {
  Dit model(config, dtype, at::kCPU, 7);
  NamedTensors values;
  for (const auto& [name, tensor] : model.parameters()) {
    values.emplace_back(name, tensor.detach().clone());
    at::Tensor noise = at::empty(tensor.sizes(), at::kDouble);
    const auto stream = fnv1a64(name);
    for (std::int64_t i = 0; i < noise.numel(); ++i) {
      noise.data_ptr<double>()[i] = philox_uniform(3, stream, static_cast<std::uint64_t>(i), Purpose::kParameter) - 0.5;
    }
    values.back().second += noise * 0.2;
  }
  model.load(values, "test");
  return model;
}

DitInput random_input(const std::vector<std::int64_t>& tokens, const std::vector<std::int64_t>& text,
                      at::ScalarType dtype = at::kDouble) {
  DitInput input;
  auto generator = at::detail::createCPUGenerator(5);
  const auto num_segments = static_cast<std::int64_t>(tokens.size());
  input.tokens = parallel::RowSegments::make(tokens, {});
  input.text = ops::Segments::from_lengths(text);
  const std::int64_t rows = input.tokens.row.num_tokens();
  input.x_TC = at::randn({rows, 64}, generator, at::kDouble).to(dtype);
  input.position_T3 = at::randint(0, 9, {rows, 3}, generator, at::kLong);
  input.c_noise_N = at::randn({num_segments}, generator, at::kDouble);
  input.fps_N = at::full({num_segments}, 30.0, at::kDouble);
  input.text_LE = at::randn({input.text.num_tokens(), 20}, generator, at::kDouble).to(dtype);
  return input;
}

// Segment i of the row alone.
DitInput alone(const DitInput& input, std::int64_t i) {
  DitInput one = input;
  const auto at = static_cast<std::size_t>(i);
  one.tokens = parallel::RowSegments::make({input.tokens.row.length(i)}, {});
  one.text = ops::Segments::from_lengths({input.text.length(i)});
  one.x_TC = input.x_TC.narrow(0, input.tokens.row.offsets[at], input.tokens.row.length(i));
  one.position_T3 = input.position_T3.narrow(0, input.tokens.row.offsets[at], input.tokens.row.length(i));
  one.c_noise_N = input.c_noise_N.narrow(0, i, 1);
  one.fps_N = input.fps_N.narrow(0, i, 1);
  one.text_LE = input.text_LE.narrow(0, input.text.offsets[at], input.text.length(i));
  return one;
}

TEST(Dit, PackedSegmentsDoNotSeeEachOther) {
  const Dit model = busy_model(small_config());
  const DitInput input = random_input({9, 9, 4, 1}, {3, 0, 5, 1});
  const at::Tensor packed = model.forward(input);
  for (std::int64_t i = 0; i < 4; ++i) {
    const ops::Segments& row = input.tokens.row;
    const at::Tensor part = packed.narrow(0, row.offsets[static_cast<std::size_t>(i)], row.length(i));
    EXPECT_LT(test::relative_error(part, model.forward(alone(input, i))), test::tolerance(at::kDouble).forward) << i;
  }
}

// The zero rows that the original attends to, written out: all 512 of them.
TEST(Dit, TextRowsThatAreThereEqualTextPaddedWithZeroRows) {
  const Dit model = busy_model(small_config());
  const DitInput input = random_input({6, 5}, {3, 0});
  DitInput padded = input;
  padded.text = ops::Segments::from_lengths({512, 512});
  padded.text_LE = at::zeros({1024, 20}, at::kDouble);
  padded.text_LE.narrow(0, 0, 3).copy_(input.text_LE);
  std::vector<at::Tensor> parameters;
  for (const auto& [name, tensor] : model.parameters()) parameters.push_back(tensor);
  const at::Tensor out = model.forward(input), want = model.forward(padded);
  EXPECT_LT(test::relative_error(out, want), test::tolerance(at::kDouble).forward);
  const auto gradients = torch::autograd::grad({out.square().sum()}, parameters);
  const auto wanted = torch::autograd::grad({want.square().sum()}, parameters);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_LT(test::relative_error(gradients[i], wanted[i]), 1e-9) << model.parameters()[i].first;
  }
}

TEST(Dit, RecomputeGivesTheSameGradientsToTheBit) {
  DitConfig config = small_config();
  const DitInput input = random_input({9, 4}, {3, 1}, at::kFloat);
  const auto run = [&](Recompute recompute) {
    config.recompute_granularity = recompute;
    const Dit model = busy_model(config, at::kFloat);
    std::vector<at::Tensor> parameters;
    for (const auto& [name, tensor] : model.parameters()) parameters.push_back(tensor);
    return torch::autograd::grad({model.forward(input).square().sum()}, parameters);
  };
  const auto plain = run(Recompute::kNone);
  for (const Recompute recompute : {Recompute::kSelective, Recompute::kFull}) {
    const auto again = run(recompute);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(at::equal(plain[i], again[i])) << config::enum_name(recompute) << " " << i;
    }
  }
}

TEST(Recompute, LinearOfAFunctionKeepsNeitherItsValueNorChangesItsGradients) {
  auto generator = at::detail::createCPUGenerator(5);
  const at::Tensor x = at::randn({6, 8}, generator, at::kFloat).requires_grad_(true);
  const at::Tensor weight = at::randn({5, 8}, generator, at::kFloat).requires_grad_(true);
  int num_calls = 0;
  c10::weak_intrusive_ptr<c10::TensorImpl> value(at::empty({0}).getIntrusivePtr());
  const at::Tensor y = linear_recompute(
      [&](const std::vector<at::Tensor>& inputs) {
        ++num_calls;
        at::Tensor result = at::gelu(inputs[0]);
        value = c10::weak_intrusive_ptr<c10::TensorImpl>(result.getIntrusivePtr());
        return result;
      },
      {x}, weight);
  EXPECT_TRUE(value.expired());
  EXPECT_EQ(num_calls, 1);
  const auto got = torch::autograd::grad({y.square().sum()}, {x, weight});
  EXPECT_EQ(num_calls, 2);
  const auto want = torch::autograd::grad({at::linear(at::gelu(x), weight).square().sum()}, {x, weight});
  EXPECT_TRUE(at::equal(got[0], want[0]));
  EXPECT_TRUE(at::equal(got[1], want[1]));
}

TEST(Dit, AnnouncesEachStageOnceAndNotAgainInBackward) {
  for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
    DitConfig config = small_config();
    config.recompute_granularity = recompute;
    Dit model = busy_model(config);
    std::vector<int> stages;
    model.set_before_stage([&](int stage) { stages.push_back(stage); });
    model.forward(random_input({5, 3}, {2, 0})).sum().backward();
    EXPECT_EQ(stages, (std::vector<int>{0, 1, 2, 3}));
  }
}

// A stage's parameters may still be arriving until it is announced: one used earlier would be stale.
TEST(Dit, UsesNoParameterBeforeItsStageIsAnnounced) {
  Dit model = busy_model(small_config());
  const DitInput input = random_input({5, 3}, {2, 0});
  const at::Tensor want = model.forward(input);
  std::vector<at::Tensor> values;
  for (const parallel::Parameter& parameter : model.placed_parameters()) {
    const at::NoGradGuard no_grad;
    values.push_back(parameter.tensor.detach().clone());
    at::Tensor(parameter.tensor).fill_(std::numeric_limits<double>::quiet_NaN());
  }
  model.set_before_stage([&](int stage) {
    const at::NoGradGuard no_grad;
    const auto parameters = model.placed_parameters();
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (parameters[i].stage == stage) at::Tensor(parameters[i].tensor).copy_(values[i]);
    }
  });
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(model.forward(input), want));
}

TEST(Dit, RecomputeAccumulatesIntoGradFields) {
  DitConfig config = small_config();
  config.recompute_granularity = Recompute::kFull;
  const Dit model = busy_model(config);
  model.forward(random_input({5}, {2})).sum().backward();
  for (const auto& [name, tensor] : model.parameters()) EXPECT_TRUE(tensor.grad().defined()) << name;
}

TEST(Dit, StartsAsMegatronStartsDfms) {
  const DitConfig config{.num_layers = 8, .hidden_size = 256, .num_attention_heads = 4, .crossattn_emb_size = 64};
  const auto parameters = initial_parameters(config, at::kFloat, at::kCPU, 1234);
  std::int64_t count = 0;
  for (const auto& [name, tensor] : parameters) {
    count += tensor.numel();
    const double largest = tensor.abs().max().item<double>();
    const double deviation = tensor.numel() > 1 ? tensor.std().item<double>() : 0;
    if (name.ends_with("adaLN_modulation.2.weight")) {
      EXPECT_EQ(largest, 0) << name;
    } else if (name.find("layernorm") != std::string::npos) {
      EXPECT_TRUE(at::equal(tensor, at::ones_like(tensor))) << name;
    } else if (name.ends_with("linear_proj.weight") || name.ends_with("linear_fc2.weight")) {
      EXPECT_NEAR(deviation, 0.02 / 4, 1e-4) << name;
    } else if (name.starts_with("decoder") && name.find("adaLN") == std::string::npos) {
      EXPECT_NEAR(deviation, 0.02, 4e-4) << name;
    } else {
      const double bound = 1 / std::sqrt(name.starts_with("x_embedder") ? 64.0 : 256.0);
      EXPECT_LE(largest, bound) << name;
      EXPECT_GT(largest, bound * 0.9) << name;
    }
  }
  // Known values: element e of a parameter is element e of the stream named by its name, whatever the model's size.
  const at::Tensor& first = parameters.front().second;
  const auto normals = philox_normal4(philox(1234, fnv1a64(parameters.front().first), 0, Purpose::kParameter));
  EXPECT_FLOAT_EQ(first[0][2].item<float>(), normals[2] * (0.02F / 4));
  // 14 D^2 + (2 C + 256 + 9 * 256) D + 4 head_dim a layer; models.md 2.1 with C 1024.
  EXPECT_EQ(count, 8 * (14 * 256 * 256 + (2 * 64 + 2560) * 256 + 4 * 64) + 2 * (256 * 256 + 256) + 131584 + 65 * 256 +
                       64 * 257);
}

TEST(Dit, Bfloat16WeightsAreTheRoundedFloatOnes) {
  const auto exact = initial_parameters(small_config(), at::kFloat, at::kCPU, 5);
  const auto rounded = initial_parameters(small_config(), at::kBFloat16, at::kCPU, 5);
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_TRUE(at::equal(exact[i].second.to(at::kBFloat16), rounded[i].second));
  }
}

TEST(Dit, LoadsPrefixedStackedAndAccompaniedNames) {
  const Dit source = busy_model(small_config(), at::kFloat);
  NamedTensors prefixed, stacked;
  std::map<std::string, std::vector<at::Tensor>> layers;
  for (const auto& [name, tensor] : source.parameters()) {
    prefixed.emplace_back("module." + name, tensor.detach());
    const std::string prefix = "decoder.layers.";
    if (name.starts_with(prefix)) {
      layers[name.substr(prefix.size() + 2)].push_back(tensor.detach());
    } else {
      stacked.emplace_back("module." + name, tensor.detach());
    }
  }
  for (const auto& [name, tensors] : layers) stacked.emplace_back("module.decoder.layers." + name, at::stack(tensors));
  stacked.emplace_back("module.pos_embedder.pos_embedding.weight", at::zeros({3, 48}));
  stacked.emplace_back("affline_norm.weight", at::zeros({48}));
  stacked.emplace_back("module.decoder.layers.mlp.linear_fc1._extra_state", at::zeros({0}));
  for (const NamedTensors& file : {prefixed, stacked}) {
    Dit model(small_config(), at::kFloat, at::kCPU, 1);
    model.load(file, "test");
    for (std::size_t i = 0; i < model.parameters().size(); ++i) {
      EXPECT_TRUE(at::equal(model.parameters()[i].second, source.parameters()[i].second));
    }
  }
}

TEST(Dit, RefusesWeightsOfAnotherModelAndNamesThem) {
  Dit model(small_config(), at::kFloat, at::kCPU, 1);
  NamedTensors weights;
  for (const auto& [name, tensor] : model.parameters()) weights.emplace_back(name, tensor.detach());
  weights[0].second = at::zeros({3});
  weights[1].first = "decoder.layers.7.surplus";
  try {
    model.load(weights, "weights.pt");
    FAIL();
  } catch (const CheckpointError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("decoder.layers.0.cross_attention.linear_proj.weight is 3, want 48x48"), std::string::npos)
        << text;
    EXPECT_NE(text.find("decoder.layers.7.surplus is unknown"), std::string::npos) << text;
    EXPECT_NE(text.find("decoder.layers.0.cross_attention.linear_q.weight is missing"), std::string::npos) << text;
    EXPECT_NE(text.find("got 3 tensors"), std::string::npos) << text;
    EXPECT_NE(text.find("(weights.pt)"), std::string::npos) << text;
  }
}

TEST(Dit, PositionsBeyondDfmsTableHaveCodesOfTheirOwn) {
  PositionCodes codes(48, at::kDouble, at::kCPU);
  const at::Tensor near = at::tensor({1, 2, 3}, at::kLong).view({1, 3}),
                   far = at::tensor({40, 90, 100}, at::kLong).view({1, 3});
  const at::Tensor before = codes.lookup(near);
  const at::Tensor code = codes.lookup(far);
  EXPECT_NEAR(code[0][0].item<double>(), std::sin(40.0), 1e-12);
  EXPECT_NEAR(code[0][12].item<double>(), std::sin(100.0), 1e-12);  // the column
  EXPECT_NEAR(code[0][30].item<double>(), std::sin(90.0), 1e-12);   // the row
  EXPECT_TRUE(at::equal(codes.lookup(at::tensor({1, 2, 3}, at::kLong).view({1, 3})), before));
}

TEST(Dit, FlopsOfXlAtTheTutorialsSizeAreThoseOfTheParameters) {
  const DitConfig xl;
  const double n = 8192;
  const double d = 1152;
  const double dominant = 6 * 28 * (14 * n * d * d + 2 * n * n * d);
  EXPECT_NEAR(dit_flops(xl, {8192}, {8}) / dominant, 1, 0.01);
  EXPECT_GT(dit_flops(xl, {8192}, {512}), dit_flops(xl, {8192}, {8}));
}

TEST(DitConfig, ReportsWhatCannotBe) {
  config::Problems problems;
  DitConfig{.hidden_size = 100, .num_attention_heads = 16}.check(problems);
  ASSERT_EQ(problems.size(), 2);
  EXPECT_EQ(problems[0].option, "num_attention_heads");
  EXPECT_EQ(problems[1].option, "hidden_size");
}

TEST(DitConfig, ReportsHeadsThatTheRanksDoNotDivide) {
  const auto problems_of = [](const DitConfig& config) {
    config::Problems problems;
    config.check(problems);
    return problems;
  };
  const config::Problems tensor = problems_of({.tensor_model_parallel_size = 6});
  ASSERT_EQ(tensor.size(), 1);
  EXPECT_EQ(tensor[0].option, "tensor_model_parallel_size");
  EXPECT_EQ(tensor[0].want, "a divisor of num_attention_heads = 16");
  EXPECT_EQ(tensor[0].hint, "set model.tensor_model_parallel_size=2");
  DitConfig config{.tensor_model_parallel_size = 4, .context_parallel_size = 8};
  EXPECT_TRUE(problems_of(config).empty());  // a ring takes any number
  config.cp_comm_type = parallel::ContextComm::kA2a;
  const config::Problems context = problems_of(config);
  ASSERT_EQ(context.size(), 1);
  EXPECT_EQ(context[0].option, "cp_comm_type");
  EXPECT_NE(context[0].want.find("the 4 heads of a tensor rank"), std::string::npos) << context[0].want;
  EXPECT_EQ(context[0].hint, "set model.cp_comm_type=p2p");
}

TEST(DitConfig, NamesOptionsThatHaveNoEffectInItsLayout) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(DitConfig{}.options_without_effect(), Lines{});
  DitConfig config{.cp_comm_type = parallel::ContextComm::kA2a, .sequence_parallel = true};
  EXPECT_EQ(config.options_without_effect(),
            (Lines{"model.sequence_parallel=true has no effect with model.tensor_model_parallel_size=1",
                   "model.cp_comm_type=a2a has no effect with model.context_parallel_size=1"}));
  config.tensor_model_parallel_size = config.context_parallel_size = 2;
  EXPECT_EQ(config.options_without_effect(), Lines{});
}

}  // namespace
}  // namespace dfm::models
