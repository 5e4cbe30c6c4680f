#include "parallel/optimizer_cases.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>

#include "dfm/comm/sharded_tensor.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "support/tolerance.h"

namespace dfm::parallel::test {
namespace {

constexpr double kLearningRate = 0.01;
constexpr double kDivisor = 16;
constexpr int kLastStage = 3;

struct ToyParameter {
  std::string name;
  std::vector<std::int64_t> shape;
  int split_dim = -1;
  bool is_partial = false;
  int stage = 0;
  bool is_rare = false;  // rows of odd number do not reach it
};
const std::vector<ToyParameter>& toy_parameters() {
  static const std::vector<ToyParameter> parameters = {{"embed.weight", {12, 10}, -1, true, 0},
                                                       {"embed.scale", {7}, -1, false, 0},
                                                       {"layer0.norm", {5}, -1, true, 1},
                                                       {"layer0.fc1", {24, 20}, 0, false, 1},
                                                       {"layer0.text", {12, 12}, 0, false, 1, true},
                                                       {"layer0.fc2", {20, 24}, 1, false, 1},
                                                       {"layer0.modulation", {4, 36}, -1, false, 1},
                                                       {"layer1.norm", {5}, -1, true, 2},
                                                       {"layer1.fc1", {24, 20}, 0, false, 2},
                                                       {"layer1.fc2", {20, 24}, 1, false, 2},
                                                       {"layer1.modulation", {9, 36}, -1, false, 2},
                                                       {"layer1.bias", {24}, 0, false, 2},
                                                       {"final.weight", {16, 13}, -1, true, kLastStage}};
  return parameters;
}

// Multiples of 1/16 of at most 7 bits: exact in bfloat16, and their sums and squares in float32 whatever the order.
at::Tensor sixteenths(const std::vector<std::int64_t>& shape, std::uint64_t seed, at::ScalarType dtype) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return (at::randint(-64, 65, shape, generator, at::kDouble) / 16).to(dtype);
}

// The gradient that one row leaves in the whole parameter, or the share of it that one tensor rank has.
at::Tensor row_gradient(std::size_t index, int step, int data_rank, int row, int share, at::ScalarType dtype) {
  const std::uint64_t seed =
      ((((index * 16 + static_cast<std::uint64_t>(step)) * 16 + static_cast<std::uint64_t>(data_rank)) * 16 +
        static_cast<std::uint64_t>(row)) *
       16) +
      static_cast<std::uint64_t>(share);
  return sixteenths(toy_parameters()[index].shape, seed, dtype);
}

at::Tensor initial_value(std::size_t index, at::ScalarType dtype) {
  return sixteenths(toy_parameters()[index].shape, 1'000'000 + index, dtype);
}

at::Tensor block_of(const at::Tensor& whole, int dim, int index, int count) {
  return dim < 0 ? whole : whole.chunk(count, dim)[static_cast<std::size_t>(index)];
}

// Identity whose backward sums over the tensor ranks: like the regions of a model, it blocks until all are there.
class TensorSum : public torch::autograd::Function<TensorSum> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, std::int64_t group) {
    ctx->saved_data["group"] = group;
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    auto* group = reinterpret_cast<comm::Group*>(ctx->saved_data["group"].toInt());  // NOLINT
    const at::Tensor sum = grads[0].clone();
    group->all_reduce(sum).wait();
    return {sum / group->size(), at::Tensor()};
  }
};

// This rank's part of a toy model.
class Rank {
 public:
  Rank(const OptimizerCase& the_case, int rank, const MakeGroup& make_group)
      : case_(the_case), tensor_rank_(rank % the_case.num_tensor), data_rank_(rank / the_case.num_tensor) {
    std::vector<int> tensor, data, all;
    for (int t = 0; t < case_.num_tensor; ++t) tensor.push_back(data_rank_ * case_.num_tensor + t);
    for (int d = 0; d < case_.num_data; ++d) data.push_back(d * case_.num_tensor + tensor_rank_);
    for (int r = 0; r < case_.num_tensor * case_.num_data; ++r) all.push_back(r);
    region_ = make_group("region", tensor);
    groups_ = {.tensor = region_,
               .data_context = make_group("data x context", data),
               .replicas = make_group("replicas", all),
               .stage = make_group("stage", all)};
    std::vector<Parameter> parameters;
    for (std::size_t i = 0; i < toy_parameters().size(); ++i) {
      const ToyParameter& toy = toy_parameters()[i];
      tensors_.push_back(own(initial_value(i, case_.dtype), toy).clone());
      tensors_.back().set_requires_grad(true);
      parameters.push_back({toy.name, tensors_.back(), toy.shape, toy.split_dim, toy.is_partial, toy.stage});
    }
    optimizer_ = std::make_unique<DistributedOptimizer>(parameters, groups_, settings());
  }

  double step(int number) {
    optimizer_->zero_gradients();
    const int num_rows = case_.rows[static_cast<std::size_t>(data_rank_)];
    for (int row = 0; row < num_rows; ++row) {
      if (row == num_rows - 1) optimizer_->begin_last_row();
      forward_backward(number, row);
    }
    optimizer_->reduce_gradients();
    for (const comm::ShardedTensor& gradient : optimizer_->gradients()) gradients_[gradient.name] = whole(gradient);
    return optimizer_->step(kLearningRate, kDivisor, number);
  }

  // All pieces of all ranks; every element must come from exactly one.
  [[nodiscard]] at::Tensor whole(const comm::ShardedTensor& sharded) const {
    const at::Tensor sum = at::zeros({2, at::empty(sharded.shape, at::kDouble).numel()}, at::kDouble);
    std::size_t next = 0;
    for (const comm::Piece& piece : sharded.pieces) {
      const int mine = groups_.replicas->ranks()[static_cast<std::size_t>(groups_.replicas->rank())];
      if (piece.rank != mine) continue;
      const at::Tensor& local = sharded.local.at(next++);
      EXPECT_EQ(local.numel(), piece.slice.numel());
      comm::for_each_run(sharded.shape, piece.slice,
                         [&](std::int64_t in_whole, std::int64_t in_own, std::int64_t count) {
                           sum[0].narrow(0, in_whole, count).add_(local.narrow(0, in_own, count));
                           sum[1].narrow(0, in_whole, count).add_(1);
                         });
    }
    EXPECT_EQ(next, sharded.local.size());
    groups_.replicas->all_reduce(sum).wait();
    EXPECT_TRUE(sum[1].eq(1).all().item<bool>()) << case_.name << ": " << sharded.name << " is not covered once";
    return sum[0].view(sharded.shape).to(sharded.dtype);
  }

  [[nodiscard]] at::Tensor own(const at::Tensor& whole, const ToyParameter& toy) const {
    return block_of(whole, toy.split_dim, tensor_rank_, case_.num_tensor);
  }
  // Bit by bit over all ranks that should have the same.
  void expect_equal_copies(const at::Tensor& tensor, const comm::GroupPtr& group, const std::string& name) const {
    const at::Tensor mine = tensor.detach().to(at::kDouble).reshape(-1).contiguous();
    const at::Tensor all = at::empty({group->size() * mine.numel()}, at::kDouble);
    group->all_gather(all, mine).wait();
    for (const at::Tensor& other : all.chunk(group->size()))
      EXPECT_TRUE(at::equal(other, mine)) << case_.name << ": " << name << " differs between ranks";
  }

  [[nodiscard]] OptimizerSettings settings() const {
    return {.weight_decay = 0.1,
            .clip_grad = 1.0,
            .use_distributed_optimizer = case_.use_distributed_optimizer,
            .overlap_grad_reduce = case_.overlap,
            .overlap_param_gather = case_.overlap,
            .bucket_size = case_.bucket_size};
  }
  [[nodiscard]] DistributedOptimizer& optimizer() { return *optimizer_; }
  [[nodiscard]] const at::Tensor& tensor(std::size_t index) const { return tensors_[index]; }
  [[nodiscard]] const ReduceGroups& groups() const { return groups_; }
  [[nodiscard]] const at::Tensor& gradient(const std::string& name) const { return gradients_.at(name); }

 private:
  void forward_backward(int step, int row) {
    at::Tensor x = at::zeros({}, case_.dtype).set_requires_grad(true);
    for (int stage = 0; stage <= kLastStage; ++stage) {
      optimizer_->wait_for_parameters(stage);
      x = TensorSum::apply(x, reinterpret_cast<std::int64_t>(region_.get()));  // NOLINT
      for (std::size_t i = 0; i < tensors_.size(); ++i) {
        const ToyParameter& toy = toy_parameters()[i];
        if (toy.stage != stage || (toy.is_rare && row % 2 == 1)) continue;
        const int share = toy.is_partial && toy.split_dim < 0 ? tensor_rank_ : 0;
        x = x + (tensors_[i] * own(row_gradient(i, step, data_rank_, row, share, case_.dtype), toy)).sum();
      }
    }
    x.backward();
  }

  OptimizerCase case_;
  int tensor_rank_, data_rank_;
  comm::GroupPtr region_;
  ReduceGroups groups_;
  std::vector<at::Tensor> tensors_;
  std::unique_ptr<DistributedOptimizer> optimizer_;
  std::map<std::string, at::Tensor> gradients_;
};

// The same training on one rank by the book, in float64: Loshchilov and Hutter, arXiv 1711.05101.
class OneRank {
 public:
  explicit OneRank(const OptimizerCase& the_case) : case_(the_case) {
    for (std::size_t i = 0; i < toy_parameters().size(); ++i) {
      values_.push_back(initial_value(i, at::kDouble));
      exp_avg_.push_back(at::zeros_like(values_.back()));
      exp_avg_sq_.push_back(at::zeros_like(values_.back()));
    }
  }

  double step(int number, const OptimizerSettings& o) {
    gradients_.clear();
    double squares = 0;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      gradients_.push_back(sum_of_rows(i, number));
      squares += (gradients_.back() / kDivisor).square().sum().item<double>();
    }
    const double norm = std::sqrt(squares);
    const double scale = std::min(1.0, o.clip_grad / norm) / kDivisor;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const at::Tensor g = gradients_[i] * scale;
      exp_avg_[i] = o.beta1 * exp_avg_[i] + (1 - o.beta1) * g;
      exp_avg_sq_[i] = o.beta2 * exp_avg_sq_[i] + (1 - o.beta2) * g * g;
      const at::Tensor mean = exp_avg_[i] / (1 - std::pow(o.beta1, number));
      const at::Tensor square = exp_avg_sq_[i] / (1 - std::pow(o.beta2, number));
      const double decay = values_[i].dim() > 1 ? o.weight_decay : 0;
      values_[i] = values_[i] * (1 - kLearningRate * decay) - kLearningRate * mean / (square.sqrt() + o.eps);
    }
    return norm;
  }
  [[nodiscard]] const at::Tensor& value(std::size_t index) const { return values_[index]; }
  [[nodiscard]] const at::Tensor& gradient(std::size_t index) const { return gradients_[index]; }

 private:
  [[nodiscard]] at::Tensor sum_of_rows(std::size_t index, int step) const {
    const ToyParameter& toy = toy_parameters()[index];
    at::Tensor sum = at::zeros(toy.shape, at::kDouble);
    const int num_shares = toy.is_partial ? case_.num_tensor : 1;
    for (int d = 0; d < case_.num_data; ++d) {
      for (int row = 0; row < case_.rows[static_cast<std::size_t>(d)]; ++row) {
        if (toy.is_rare && row % 2 == 1) continue;
        for (int share = 0; share < num_shares; ++share) sum += row_gradient(index, step, d, row, share, at::kDouble);
      }
    }
    return sum;
  }

  OptimizerCase case_;
  std::vector<at::Tensor> values_, exp_avg_, exp_avg_sq_, gradients_;
};

// Measured: 2e-16 (float64), 2e-7 (float32); a bfloat16 parameter is its master rounded, at most 2^-9 off.
double error_limit(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-13 : dtype == at::kFloat ? 1e-6 : 4e-3; }

}  // namespace

std::vector<OptimizerCase> optimizer_cases(int num_ranks) {
  std::vector<OptimizerCase> cases;
  if (num_ranks == 1) return {{.name = "one rank", .rows = {2}}};
  const std::vector<int> even(static_cast<std::size_t>(num_ranks), 2);
  std::vector<int> uneven = even;
  uneven.front() = 3, uneven.back() = 0;
  cases.push_back({.name = "DP", .num_data = num_ranks, .rows = even});
  cases.push_back({.name = "DP uneven", .num_data = num_ranks, .rows = uneven});
  cases.push_back({.name = "DP float", .num_data = num_ranks, .rows = uneven, .bucket_size = 1, .dtype = at::kFloat});
  cases.push_back({.name = "DP bfloat16", .num_data = num_ranks, .rows = uneven, .dtype = at::kBFloat16});
  cases.push_back(
      {.name = "DP not sharded", .num_data = num_ranks, .rows = uneven, .use_distributed_optimizer = false});
  cases.push_back({.name = "DP at the end", .num_data = num_ranks, .rows = uneven, .overlap = false});
  cases.push_back({.name = "TP", .num_tensor = num_ranks, .rows = {2}});
  cases.push_back({.name = "TP not sharded", .num_tensor = num_ranks, .rows = {2}, .use_distributed_optimizer = false});
  if (num_ranks % 2 != 0 || num_ranks < 4) return cases;
  OptimizerCase both{.name = "TP x DP", .num_tensor = 2, .num_data = num_ranks / 2};
  both.rows.assign(static_cast<std::size_t>(num_ranks / 2), 2);
  cases.push_back(both);
  both.name = "TP x DP, a data rank without a row";
  both.rows.back() = 0;
  cases.push_back(both);
  both.name = "TP x DP bfloat16";
  both.dtype = at::kBFloat16;
  cases.push_back(both);
  both.name = "TP x DP float, one bucket of a kind";
  both.dtype = at::kFloat;
  both.bucket_size = 0;
  cases.push_back(both);
  both.name = "TP x DP not sharded, a bucket a parameter";
  both.use_distributed_optimizer = false;
  both.bucket_size = 1;
  cases.push_back(both);
  return cases;
}

void check_equals_one_rank(const OptimizerCase& the_case, int rank, const MakeGroup& make_group) {
  Rank ours(the_case, rank, make_group);
  OneRank reference(the_case);
  for (int step = 1; step <= 5; ++step) {
    const double norm = ours.step(step);
    const double want = reference.step(step, ours.settings());
    EXPECT_NEAR(norm, want, 1e-13 * want) << the_case.name;
    ours.expect_equal_copies(at::full({1}, norm, at::kDouble), ours.groups().replicas, "the norm");
    for (std::size_t i = 0; i < toy_parameters().size(); ++i) {
      const std::string& name = toy_parameters()[i].name;
      // All sums are exact, but for the weight 1 / 3 of three tensor ranks.
      EXPECT_LE(dfm::test::relative_error(ours.gradient(name), reference.gradient(i)),
                the_case.num_tensor == 3 ? 1e-15 : 0)
          << the_case.name << ": gradient of " << name << " in step " << step;
    }
  }
  ours.optimizer().wait_for_parameters();
  const std::vector<comm::ShardedTensor> weights = ours.optimizer().weights();
  const std::vector<comm::ShardedTensor> state = ours.optimizer().state();
  for (std::size_t i = 0; i < toy_parameters().size(); ++i) {
    const ToyParameter& toy = toy_parameters()[i];
    const at::Tensor mine = ours.tensor(i).detach();
    EXPECT_LT(dfm::test::relative_error(mine, ours.own(reference.value(i), toy)), error_limit(the_case.dtype))
        << the_case.name << ": " << toy.name;
    ours.expect_equal_copies(mine, toy.split_dim < 0 ? ours.groups().replicas : ours.groups().data_context, toy.name);
    EXPECT_EQ(weights[i].name, toy.name);
    EXPECT_EQ(weights[i].dtype, the_case.dtype);
    EXPECT_TRUE(at::equal(ours.own(ours.whole(weights[i]), toy), mine)) << the_case.name << ": weights of " << toy.name;
    EXPECT_EQ(state[i].name, "optimizer.state.param." + toy.name);
    const at::Tensor master = ours.whole(state[i]);
    EXPECT_EQ(master.scalar_type(), the_case.dtype == at::kDouble ? at::kDouble : at::kFloat);
    EXPECT_LT(dfm::test::relative_error(master, reference.value(i)), the_case.dtype == at::kDouble ? 1e-13 : 1e-6)
        << the_case.name << ": master of " << toy.name;
    EXPECT_TRUE(at::equal(ours.own(master, toy).to(the_case.dtype), mine)) << the_case.name << ": " << toy.name;
  }
}

void check_state_goes_to(const OptimizerCase& from, const OptimizerCase& to, int rank, const MakeGroup& make_group) {
  const std::string name = from.name + " -> " + to.name;
  std::map<std::string, at::Tensor> stored;
  Rank before(from, rank, make_group);
  for (int step = 1; step <= 2; ++step) before.step(step);
  for (const comm::ShardedTensor& tensor : before.optimizer().state()) stored[tensor.name] = before.whole(tensor);

  Rank after(to, rank, make_group);
  for (const comm::WantedSlice& wanted : after.optimizer().wanted_state()) {
    const at::Tensor& whole = stored.at(wanted.name);
    EXPECT_EQ(whole.sizes(), at::IntArrayRef(wanted.shape));
    EXPECT_EQ(wanted.target.numel(), wanted.slice.numel());
    comm::for_each_run(wanted.shape, wanted.slice, [&](std::int64_t in_whole, std::int64_t in_own, std::int64_t count) {
      at::Tensor target = wanted.target;
      target.narrow(0, in_own, count).copy_(whole.reshape(-1).narrow(0, in_whole, count));
    });
  }
  after.optimizer().state_loaded();
  for (const comm::ShardedTensor& tensor : after.optimizer().state())
    EXPECT_TRUE(at::equal(after.whole(tensor), stored.at(tensor.name))) << name << ": " << tensor.name;
  std::map<std::string, at::Tensor> weights;
  for (const comm::ShardedTensor& tensor : before.optimizer().weights()) weights[tensor.name] = before.whole(tensor);
  for (std::size_t i = 0; i < toy_parameters().size(); ++i) {
    const ToyParameter& toy = toy_parameters()[i];
    EXPECT_TRUE(at::equal(after.tensor(i), after.own(weights.at(toy.name), toy))) << name << ": " << toy.name;
  }

  // Where both layouts see the same rows, the next step is the same.
  if (from.rows != to.rows || from.num_tensor != to.num_tensor) return;
  before.step(3);
  after.step(3);
  before.optimizer().wait_for_parameters();
  after.optimizer().wait_for_parameters();
  for (std::size_t i = 0; i < toy_parameters().size(); ++i)
    EXPECT_LT(dfm::test::relative_error(after.tensor(i), before.tensor(i)), error_limit(to.dtype)) << name;
}

}  // namespace dfm::parallel::test
