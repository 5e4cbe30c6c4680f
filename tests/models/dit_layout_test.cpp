// What a DiT is on one rank of several, as far as it shows without the others.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "dfm/models/dit/dit.h"
#include "support/errors.h"

namespace dfm::models {
namespace {

// A place in a group whose other members do not exist.
class LonelyGroup : public comm::Group {
 public:
  LonelyGroup(int size, int rank) : Group("lonely", counted(size), rank) {}
  comm::Work all_reduce(const at::Tensor&, comm::Reduce) override { return refuse(); }
  comm::Work all_gather(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work reduce_scatter(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work all_to_all(const at::Tensor&, const at::Tensor&) override { return refuse(); }
  comm::Work broadcast(const at::Tensor&, int) override { return refuse(); }
  comm::Work exchange(const std::vector<comm::Transfer>&, const std::vector<comm::Transfer>&) override {
    return refuse();
  }
  void barrier() override { refuse(); }

 private:
  static comm::Work refuse() { throw InternalError("group: got an operation, want none here"); }
  static std::vector<int> counted(int size) {
    std::vector<int> ranks(static_cast<std::size_t>(size));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
};

parallel::Parallel tensor_rank(int rank, int size, bool sequence = false) {
  return {.tensor = std::make_shared<LonelyGroup>(size, rank), .sequence = sequence};
}

DitConfig small_config() {
  return {.num_layers = 2, .hidden_size = 48, .num_attention_heads = 4, .crossattn_emb_size = 20};
}

TEST(DitLayout, EachTensorRankStartsWithItsPartOfTheSameValues) {
  const auto whole = initial_parameters(small_config(), at::kFloat, at::kCPU, 7);
  std::vector<std::vector<parallel::Parameter>> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.push_back(Dit(small_config(), at::kFloat, at::kCPU, 7, tensor_rank(rank, 2)).placed_parameters());
  }
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const auto& [name, value] = whole[i];
    const parallel::Parameter &first = ranks[0][i], &second = ranks[1][i];
    EXPECT_EQ(first.name, name);
    EXPECT_EQ(at::IntArrayRef(first.shape), value.sizes()) << name;
    const at::Tensor joined =
        first.split_dim < 0 ? second.tensor : at::cat({first.tensor, second.tensor}, first.split_dim);
    EXPECT_TRUE(at::equal(joined, value)) << name;
    EXPECT_TRUE(first.tensor.is_contiguous() && first.tensor.requires_grad()) << name;
    EXPECT_EQ(first.tensor.storage().nbytes(), first.tensor.nbytes()) << name << " holds on to the whole tensor";
  }
}

TEST(DitLayout, LoadsItsPartOfWholeTensorsAndRefusesPartsByName) {
  NamedTensors whole = initial_parameters(small_config(), at::kFloat, at::kCPU, 8);
  Dit model(small_config(), at::kFloat, at::kCPU, 7, tensor_rank(1, 2));
  model.load(whole, "test");
  const Dit want(small_config(), at::kFloat, at::kCPU, 8, tensor_rank(1, 2));
  for (std::size_t i = 0; i < whole.size(); ++i) {
    EXPECT_TRUE(at::equal(model.parameters()[i].second, want.parameters()[i].second)) << whole[i].first;
  }
  EXPECT_EQ(whole[1].first, "decoder.layers.0.cross_attention.linear_q.weight");
  whole[1].second = whole[1].second.narrow(0, 0, 24);
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "linear_q.weight is 24x48, want 48x48", (model.load(whole, "test"), 0));
}

// Column layers by rows, row layers by columns; nothing else is split.
TEST(DitLayout, SplitsTheMatricesOfBranchesAlone) {
  const std::map<std::string, int> split = {{"full_self_attention.linear_qkv.weight", 0},
                                            {"full_self_attention.linear_proj.weight", 1},
                                            {"cross_attention.linear_q.weight", 0},
                                            {"cross_attention.linear_kv.weight", 0},
                                            {"cross_attention.linear_proj.weight", 1},
                                            {"mlp.linear_fc1.weight", 0},
                                            {"mlp.linear_fc2.weight", 1}};
  std::size_t num_split = 0;
  const Dit model(small_config(), at::kFloat, at::kCPU, 7, tensor_rank(0, 2));
  for (const parallel::Parameter& parameter : model.placed_parameters()) {
    const std::string prefix = "decoder.layers.0.";
    const auto found =
        split.find(parameter.name.starts_with("decoder") ? parameter.name.substr(prefix.size()) : parameter.name);
    EXPECT_EQ(parameter.split_dim, found == split.end() ? -1 : found->second) << parameter.name;
    num_split += parameter.split_dim >= 0 ? 1 : 0;
  }
  EXPECT_EQ(num_split, 14U);
}

TEST(DitLayout, SaysWhereEachParameterStandsAndWhoseGradientIsPartial) {
  const auto expect = [](const parallel::Parallel& parallel, bool norms_are_partial, bool others_are_partial) {
    const Dit model(small_config(), at::kFloat, at::kCPU, 7, parallel);
    for (const parallel::Parameter& parameter : model.placed_parameters()) {
      const std::string& name = parameter.name;
      const int stage = name.starts_with("decoder.layers.0.")     ? 1
                        : name.starts_with("decoder.layers.1.")   ? 2
                        : name.starts_with("final_layer_linear.") ? 3
                                                                  : 0;
      EXPECT_EQ(parameter.stage, stage) << name;
      const bool is_norm = name.find("layernorm") != std::string::npos;
      const bool is_replicated = parameter.split_dim < 0;
      EXPECT_EQ(parameter.is_partial, is_replicated && (is_norm ? norms_are_partial : others_are_partial)) << name;
    }
  };
  expect({}, false, false);
  expect({.sequence = true}, false, false);
  expect({.context = std::make_shared<LonelyGroup>(2, 0)}, false, false);
  expect(tensor_rank(0, 2), true, false);
  expect(tensor_rank(0, 2, true), true, true);
}

TEST(DitLayout, RefusesGroupsThatDoNotDivideTheHeads) {
  const auto build = [](const parallel::Parallel& parallel) {
    return Dit(small_config(), at::kFloat, at::kCPU, 7, parallel);
  };
  EXPECT_DFM_ERROR(ExitCode::kConfig,
                   "model.tensor_model_parallel_size: got 3, want a divisor of model.num_attention_heads = 4",
                   build(tensor_rank(0, 3)));
  parallel::Parallel both = tensor_rank(0, 2);
  both.context = std::make_shared<LonelyGroup>(4, 0);
  build(both);
  both.context_comm = parallel::ContextComm::kA2a;
  EXPECT_DFM_ERROR(ExitCode::kConfig,
                   "model.cp_comm_type: got a2a with 4 context ranks, want a divisor of the 2 heads of a tensor rank",
                   build(both));
}

}  // namespace
}  // namespace dfm::models
