// The DiT over ranks, in float64, against the same model on one: output, gradient of the input and of every parameter.
#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>

#include "dfm/base/hash.h"
#include "dfm/comm/grid.h"
#include "dfm/models/dit/dit.h"
#include "dfm/ops/philox_normal.h"
#include "support/ranks.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

using parallel::ContextComm;

DitConfig small_config(Recompute recompute = Recompute::kNone) {
  return {.num_layers = 2,
          .hidden_size = 48,
          .num_attention_heads = 4,
          .crossattn_emb_size = 20,
          .recompute_granularity = recompute};
}

at::Tensor normals(const std::string& name, const std::vector<std::int64_t>& shape) {
  at::Tensor values = at::empty(shape, at::kFloat);
  ops::philox_normal_(values, 11, fnv1a64(name), Purpose::kSynthetic);
  return values.to(at::kDouble);
}

// adaLN starts at zero: without this no branch would have any effect, and none of its parameters a gradient.
NamedTensors busy_weights() {
  NamedTensors weights = initial_parameters(small_config(), at::kDouble, at::kCPU, 7);
  for (auto& [name, value] : weights) value = value + 0.1 * normals(name, value.sizes().vec());
  return weights;
}

// A row as one rank has it.
struct WholeRow {
  std::string name;
  std::vector<std::int64_t> token_lengths, text_lengths;
  std::int64_t length;  // padding included
};

const std::vector<WholeRow>& rows() {
  static const std::vector<WholeRow> all = {
      {"mixed", {9, 29, 4, 1}, {3, 0, 5, 1}, 44},
      {"parts of padding alone", {9, 16, 4}, {0, 2, 7}, 64},  // the last two of four parts have no token
      {"no text", {21, 11}, {0, 0}, 32},
  };
  return all;
}

struct RankInput {
  DitInput input;
  at::Tensor cotangent_TC;  // 0 in padding
};

// This rank's part of the row's input.
RankInput input_of(const WholeRow& row, const parallel::Parallel& parallel) {
  const auto num_segments = static_cast<std::int64_t>(row.token_lengths.size());
  RankInput result;
  DitInput& input = result.input;
  input.tokens = parallel::RowSegments::make(row.token_lengths, parallel, at::kCPU, row.length);
  input.text = ops::Segments::from_lengths(row.text_lengths);
  const std::int64_t num_tokens = input.tokens.row.num_tokens();
  const auto local = [&](const at::Tensor& real_TX) {
    return at::constant_pad_nd(real_TX, {0, 0, 0, row.length - num_tokens})
        .narrow(0, input.tokens.local_first, input.tokens.local_length)
        .contiguous();
  };
  input.x_TC = local(normals(row.name + " x", {num_tokens, 64}));
  input.position_T3 = local(at::arange(num_tokens * 3, at::kLong).view({num_tokens, 3}).remainder(7));
  input.c_noise_N = normals(row.name + " noise", {num_segments});
  input.fps_N = 24 + 6 * at::arange(num_segments, at::kDouble);
  input.text_LE = normals(row.name + " text", {input.text.num_tokens(), 20});
  result.cotangent_TC = local(normals(row.name + " cotangent", {num_tokens, 64}));
  return result;
}

// Gradients as the optimizer makes them: parts joined, partial sums summed over the tensor group, all summed over the
// context group. `not_summed`: a partial one that is left as it is.
at::Tensor whole_gradient(const parallel::Parameter& parameter, const at::Tensor& found,
                          const parallel::Parallel& parallel, const std::string& not_summed) {
  at::Tensor grad = found.clone(at::MemoryFormat::Contiguous);
  const comm::Group& tensor = *parallel.tensor;
  if (parameter.split_dim >= 0) {
    const at::Tensor parts = at::empty({tensor.size(), grad.numel()}, grad.options());
    parallel.tensor->all_gather(parts, grad).wait();
    std::vector<at::Tensor> views;
    for (const at::Tensor& part : parts.unbind(0)) views.push_back(part.view(grad.sizes()));
    grad = at::cat(views, parameter.split_dim);
  } else if (parameter.is_partial && parameter.name != not_summed) {
    parallel.tensor->all_reduce(grad).wait();
  }
  parallel.context->all_reduce(grad).wait();
  return grad;
}

// By name: "out" and "grad_x" (this rank's real tokens), then every parameter.
NamedTensors run(const Dit& model, const WholeRow& row, const std::string& not_summed = "") {
  RankInput in = input_of(row, model.parallel());
  in.input.x_TC.set_requires_grad(true);
  const at::Tensor out = model.forward(in.input);
  const std::vector<parallel::Parameter> parameters = model.placed_parameters();
  std::vector<at::Tensor> wanted{in.input.x_TC};
  for (const parallel::Parameter& parameter : parameters) wanted.push_back(parameter.tensor);
  // Throws when a parameter has no part in the graph.
  const auto found = torch::autograd::grad({out}, wanted, {in.cotangent_TC});
  const std::int64_t num_tokens = in.input.tokens.local.num_tokens();
  NamedTensors results{{"out", out.detach().narrow(0, 0, num_tokens)}, {"grad_x", found[0].narrow(0, 0, num_tokens)}};
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    results.emplace_back(parameters[i].name, whole_gradient(parameters[i], found[i + 1], model.parallel(), not_summed));
  }
  return results;
}

// The names of what differs.
std::vector<std::string> differing(const NamedTensors& got, const NamedTensors& want,
                                   const parallel::RowSegments& tokens) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto& [name, value] = want[i];
    const bool is_rows = name == "out" || name == "grad_x";
    const at::Tensor wanted = is_rows && tokens.local.num_tokens() > 0
                                  ? value.narrow(0, tokens.local_first, tokens.local.num_tokens())
                              : is_rows ? value.narrow(0, 0, 0)
                                        : value;
    // Relative to the whole tensor's largest value, of which a rank may have a few small rows.
    const double scale = std::max(value.abs().max().item<double>(), 1e-300);
    const bool has_shape = got[i].first == name && got[i].second.sizes() == wanted.sizes();
    const double error = !has_shape            ? 1
                         : wanted.numel() == 0 ? 0
                                               : (got[i].second - wanted).abs().max().item<double>() / scale;
    if (!(error <= 1e-11)) names.push_back(fmt::format("{} ({:.1e})", name, error));
  }
  return names;
}

struct Layout {
  comm::GridSizes sizes;
  bool sequence = false;
  ContextComm context_comm = ContextComm::kP2p;
};

std::vector<Layout> layouts_of(int num_ranks) {
  std::vector<Layout> layouts = {{{.tensor = num_ranks}},
                                 {{.tensor = num_ranks}, true},
                                 {{.context = num_ranks}, false, ContextComm::kA2a},
                                 {{.context = num_ranks}, false, ContextComm::kP2p}};
  if (num_ranks == 4) {
    for (const bool sequence : {false, true}) {
      for (const ContextComm context_comm : {ContextComm::kA2a, ContextComm::kP2p}) {
        layouts.push_back({{.tensor = 2, .context = 2}, sequence, context_comm});
      }
    }
  }
  return layouts;
}

parallel::Parallel parallel_of(comm::World& world, const Layout& layout) {
  const comm::Axes tensor{.tensor = true}, context{.context = true};
  return {.tensor = world.group("tensor", comm::ranks_along(world.rank(), tensor, layout.sizes)),
          .context = world.group("context", comm::ranks_along(world.rank(), context, layout.sizes)),
          .sequence = layout.sequence,
          .context_comm = layout.context_comm};
}

Dit busy_model(const NamedTensors& weights, Recompute recompute, const parallel::Parallel& parallel = {}) {
  Dit model(small_config(recompute), at::kDouble, at::kCPU, 1, parallel);
  model.load(weights, "test");
  return model;
}

// What one rank gives, by row. Every rank computes it.
std::map<std::string, NamedTensors> results_of_one_rank(const NamedTensors& weights) {
  const Dit model = busy_model(weights, Recompute::kNone);
  std::map<std::string, NamedTensors> results;
  for (const WholeRow& row : rows()) results.emplace(row.name, run(model, row));
  return results;
}

void compare_layouts(comm::World& world) {
  const NamedTensors weights = busy_weights();
  const auto wanted = results_of_one_rank(weights);
  for (const Layout& layout : layouts_of(world.size())) {
    const parallel::Parallel parallel = parallel_of(world, layout);
    for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
      const Dit model = busy_model(weights, recompute, parallel);
      for (const WholeRow& row : rows()) {
        const NamedTensors got = run(model, row);
        EXPECT_EQ(differing(got, wanted.at(row.name), input_of(row, parallel).input.tokens), std::vector<std::string>{})
            << comm::describe(layout.sizes) << (layout.sequence ? " SP " : " ")
            << config::enum_name(layout.context_comm) << ", recompute " << config::enum_name(recompute) << ", row "
            << row.name;
      }
    }
    // Without gradients the branch without text is left out, on all ranks alike.
    const at::NoGradGuard no_grad;
    const Dit model = busy_model(weights, Recompute::kSelective, parallel);
    const RankInput in = input_of(rows().back(), parallel);
    const std::int64_t num_tokens = in.input.tokens.local.num_tokens();
    EXPECT_LT(test::relative_error(
                  model.forward(in.input).narrow(0, 0, num_tokens),
                  wanted.at(rows().back().name)[0].second.narrow(0, in.input.tokens.local_first, num_tokens)),
              1e-11)
        << comm::describe(layout.sizes);
  }
}

RANK_CASE(dit_layouts) { compare_layouts(world); }

TEST(DitRanks, TwoRanksComputeWhatOneDoes) { test::run_ranks(2, "dit_layouts"); }
TEST(DitRanks, FourRanksComputeWhatOneDoes) { test::run_ranks(4, "dit_layouts"); }

// Each parameter that counts as partial, in turn without its sum over the tensor group: it alone must be found.
void drop_reductions(comm::World& world) {
  const NamedTensors weights = busy_weights();
  const auto wanted = results_of_one_rank(weights);
  const WholeRow& row = rows().front();
  for (const bool sequence : {false, true}) {
    const parallel::Parallel parallel = parallel_of(world, {{.tensor = world.size()}, sequence});
    const parallel::RowSegments tokens = input_of(row, parallel).input.tokens;
    const Dit model = busy_model(weights, Recompute::kNone, parallel);
    int num_partial = 0;
    for (const parallel::Parameter& parameter : model.placed_parameters()) {
      if (!parameter.is_partial) continue;
      ++num_partial;
      const std::vector<std::string> names = differing(run(model, row, parameter.name), wanted.at(row.name), tokens);
      ASSERT_EQ(names.size(), 1U) << parameter.name << ": " << fmt::format("{}", fmt::join(names, ", "));
      EXPECT_TRUE(names[0].starts_with(parameter.name + " (")) << names[0];
    }
    EXPECT_EQ(num_partial, sequence ? 2 * 6 + 12 : 2 * 4);
  }
}

RANK_CASE(dit_dropped_reduction) { drop_reductions(world); }

TEST(DitRanks, TheComparisonFindsEachDroppedReduction) { test::run_ranks(2, "dit_dropped_reduction"); }

}  // namespace
}  // namespace dfm::models
