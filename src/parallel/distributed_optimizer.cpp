#include "dfm/parallel/distributed_optimizer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <map>

#include "dfm/base/error.h"
#include "dfm/ops/adamw.h"
#include "parallel/gradient_buckets.h"

namespace dfm::parallel {
namespace {

constexpr const char* kParam = "optimizer.state.param.";
constexpr const char* kExpAvg = "optimizer.state.exp_avg.";
constexpr const char* kExpAvgSq = "optimizer.state.exp_avg_sq.";

void check_groups(const ReduceGroups& groups) {
  const auto num_tensor = static_cast<std::size_t>(groups.tensor->size());
  const auto num_data = static_cast<std::size_t>(groups.data_context->size());
  const std::vector<int>& replicas = groups.replicas->ranks();
  const auto tensor_rank = static_cast<std::size_t>(groups.tensor->rank());
  const auto data_rank = static_cast<std::size_t>(groups.data_context->rank());
  bool fits = replicas.size() == num_tensor * num_data;
  for (std::size_t t = 0; fits && t < num_tensor; ++t)
    fits = replicas[data_rank * num_tensor + t] == groups.tensor->ranks()[t];
  for (std::size_t d = 0; fits && d < num_data; ++d)
    fits = replicas[d * num_tensor + tensor_rank] == groups.data_context->ranks()[d];
  if (!fits) {
    throw InternalError(
        "groups of the optimizer: got replicas [{}], tensor [{}], data x context [{}], want the first "
        "to be the product of the others, tensor ranks neighbours",
        fmt::join(replicas, ", "), fmt::join(groups.tensor->ranks(), ", "),
        fmt::join(groups.data_context->ranks(), ", "));
  }
}

void check_parameters(const std::vector<Parameter>& parameters, const ReduceGroups& groups) {
  for (const Parameter& parameter : parameters) {
    const comm::Slice slice =
        comm::block_slice(parameter.shape, parameter.split_dim, groups.tensor->rank(), groups.tensor->size());
    const at::Tensor& tensor = parameter.tensor;
    const at::Tensor& first = parameters.front().tensor;
    if (tensor.sizes() != at::IntArrayRef(comm::block_shape(parameter.shape, slice)) ||
        tensor.scalar_type() != first.scalar_type() || tensor.device() != first.device()) {
      throw InternalError(
          "parameter {}: got shape [{}] of [{}], want this rank's part, of one dtype and device with "
          "the others",
          parameter.name, fmt::join(tensor.sizes(), ", "), fmt::join(parameter.shape, ", "));
    }
  }
}

// What this rank holds of a bucket's state: its owned range, flat.
struct BucketState {
  at::Tensor master;  // where the dtypes agree: memory of the parameters themselves
  at::Tensor exp_avg, exp_avg_sq;
  bool has_copy = false;  // the parameters are a narrower copy of the master
  comm::Work gather;      // of new parameters
  bool is_gathering = false;
};

}  // namespace

struct DistributedOptimizer::Impl {
  Impl(std::vector<Parameter> moved, const ReduceGroups& reduce_groups, const OptimizerSettings& wanted)
      : parameters(std::move(moved)), groups(reduce_groups), settings(wanted), gradients(parameters, groups, settings) {
    for (const Bucket& bucket : gradients.buckets()) {
      BucketState state;
      state.master = elements(bucket.parameters, bucket.owned());
      state.has_copy = bucket.parameters.scalar_type() != bucket.gradients.scalar_type();
      if (state.has_copy) state.master = state.master.to(bucket.gradients.scalar_type());
      state.exp_avg = at::zeros_like(state.master);
      state.exp_avg_sq = at::zeros_like(state.master);
      states.push_back(std::move(state));
    }
  }

  // The elements of parameter `index` that `range` of its bucket holds; empty: none.
  [[nodiscard]] Range part_in(std::size_t index, const Range& range) const {
    return intersection(gradients.place(index).range, range);
  }
  [[nodiscard]] const Bucket& bucket_of(std::size_t index) const {
    return gradients.buckets()[gradients.place(index).bucket];
  }

  [[nodiscard]] double norm_of_sums() const;
  void step_bucket(std::size_t index, const ops::AdamwOptions& options);
  void gather(std::size_t index);
  void wait(std::size_t index);
  void wait_all();
  void refresh_parameters();
  // A tensor of which each rank has its part of the buckets; `flat` gives this rank's memory of a bucket, which begins
  // at element `begin` of it.
  template <typename Flat>
  comm::ShardedTensor sharded(std::size_t index, const std::string& prefix, Flat flat) const;

  std::vector<Parameter> parameters;
  ReduceGroups groups;
  OptimizerSettings settings;
  GradientBuckets gradients;
  std::vector<BucketState> states;  // by bucket
};

// Each rank adds the squares of its own part of every bucket, with or without sharded state: no element is counted
// twice, and the result is the same number on every rank.
double DistributedOptimizer::Impl::norm_of_sums() const {
  const at::TensorOptions options = gradients.buckets().front().gradients.options().dtype(at::kDouble);
  at::Tensor sum = at::zeros({1}, options);
  if (options.device().is_cpu()) {
    // In model order, whatever the buckets are.
    std::vector<at::Tensor> pieces;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Range range = part_in(i, bucket_of(i).part());
      if (!range.is_empty()) pieces.push_back(elements(bucket_of(i).gradients, range));
    }
    sum.fill_(ops::sum_of_squares(pieces));
  } else {
    // Few launches and one wait of the host; gaps and padding are zero.
    for (const Bucket& bucket : gradients.buckets()) {
      const at::Tensor part = elements(bucket.gradients, bucket.part());
      sum.add_(at::linalg_vector_norm(part, 2, std::nullopt, false, at::kDouble).square());
    }
  }
  groups.stage->all_reduce(sum).wait();
  return std::sqrt(sum.item<double>());
}

void DistributedOptimizer::Impl::step_bucket(std::size_t index, const ops::AdamwOptions& options) {
  const Bucket& bucket = gradients.buckets()[index];
  const BucketState& state = states[index];
  const Range owned = bucket.owned();
  std::vector<ops::AdamwTensor> tensors;
  for (const std::size_t member : bucket.plan.members) {
    const Range range = part_in(member, owned);
    if (range.is_empty()) continue;
    const Range in_state{range.begin - owned.begin, range.end - owned.begin};
    tensors.push_back({.master = elements(state.master, in_state),
                       .gradient = elements(bucket.gradients, range),
                       .exp_avg = elements(state.exp_avg, in_state),
                       .exp_avg_sq = elements(state.exp_avg_sq, in_state),
                       .compute = state.has_copy ? elements(bucket.parameters, range) : at::Tensor(),
                       .weight_decay = parameters[member].shape.size() > 1 ? settings.weight_decay : 0.0});
  }
  ops::adamw_step(tensors, options);
}

void DistributedOptimizer::Impl::gather(std::size_t index) {
  const Bucket& bucket = gradients.buckets()[index];
  if (!bucket.is_sharded) return;
  states[index].gather = bucket.group->all_gather(bucket.parameters, elements(bucket.parameters, bucket.part()));
  states[index].is_gathering = true;
}

void DistributedOptimizer::Impl::wait(std::size_t index) {
  BucketState& state = states[index];
  if (!state.is_gathering) return;
  state.gather.wait();
  state.gather = {};
  state.is_gathering = false;
}

void DistributedOptimizer::Impl::wait_all() {
  for (std::size_t i = 0; i < states.size(); ++i) wait(i);
}

void DistributedOptimizer::Impl::refresh_parameters() {
  for (std::size_t i = states.size(); i-- > 0;) {
    const Bucket& bucket = gradients.buckets()[i];
    if (states[i].has_copy) elements(bucket.parameters, bucket.owned()).copy_(states[i].master);
    gather(i);
  }
  wait_all();
}

template <typename Flat>
comm::ShardedTensor DistributedOptimizer::Impl::sharded(std::size_t index, const std::string& prefix, Flat flat) const {
  const Parameter& parameter = parameters[index];
  const Bucket& bucket = bucket_of(index);
  const auto [memory, begin] = flat(bucket, states[gradients.place(index).bucket]);
  comm::ShardedTensor result{.name = prefix + parameter.name, .shape = parameter.shape, .dtype = memory.scalar_type()};
  result.pieces =
      pieces_of(parameter, bucket.plan, gradients.place(index).range, groups.replicas->ranks(), groups.tensor->size());
  const Range own = part_in(index, bucket.part());
  if (!own.is_empty()) result.local = {elements(memory, {own.begin - begin, own.end - begin})};
  return result;
}

DistributedOptimizer::DistributedOptimizer(std::vector<Parameter> parameters, const ReduceGroups& groups,
                                           const OptimizerSettings& settings) {
  const at::NoGradGuard no_grad;
  if (parameters.empty()) throw InternalError("optimizer: got no parameters, want at least one");
  check_groups(groups);
  check_parameters(parameters, groups);
  impl_ = std::make_unique<Impl>(std::move(parameters), groups, settings);
}

DistributedOptimizer::~DistributedOptimizer() = default;

void DistributedOptimizer::zero_gradients() { impl_->gradients.zero(); }
void DistributedOptimizer::begin_last_row() { impl_->gradients.begin_last_row(); }
void DistributedOptimizer::reduce_gradients() { impl_->gradients.reduce(); }

double DistributedOptimizer::step(double lr, double divisor, std::int64_t step) {
  const at::NoGradGuard no_grad;
  if (!impl_->gradients.is_reduced()) throw InternalError("step of the optimizer: want reduced gradients");
  impl_->wait_all();
  const OptimizerSettings& settings = impl_->settings;
  const double norm = impl_->norm_of_sums() / divisor;
  if (!std::isfinite(norm)) return norm;
  const double clip = settings.clip_grad > 0 && norm > settings.clip_grad ? settings.clip_grad / norm : 1.0;
  const ops::AdamwOptions options{.lr = lr,
                                  .beta1 = settings.beta1,
                                  .beta2 = settings.beta2,
                                  .eps = settings.eps,
                                  .step = step,
                                  .gradient_scale = clip / divisor};
  // In forward's order: a bucket is on its way while the next is computed, and the first layers come first.
  for (std::size_t i = impl_->states.size(); i-- > 0;) {
    impl_->step_bucket(i, options);
    impl_->gather(i);
  }
  if (!settings.overlap_param_gather) impl_->wait_all();
  return norm;
}

void DistributedOptimizer::wait_for_parameters(int stage) {
  for (std::size_t i = 0; i < impl_->states.size(); ++i) {
    const BucketPlan& plan = impl_->gradients.buckets()[i].plan;
    if (plan.first_stage <= stage && stage <= plan.last_stage) impl_->wait(i);
  }
}

void DistributedOptimizer::wait_for_parameters() { impl_->wait_all(); }

bool DistributedOptimizer::has_finite_gradients() const {
  std::vector<at::Tensor> sums;
  for (const Bucket& bucket : impl_->gradients.buckets()) sums.push_back(bucket.gradients);
  return std::isfinite(ops::sum_of_squares(sums));  // what the norm would say
}

std::vector<comm::ShardedTensor> DistributedOptimizer::gradients() {
  std::vector<comm::ShardedTensor> result;
  for (std::size_t i = 0; i < impl_->parameters.size(); ++i) {
    result.push_back(impl_->sharded(
        i, "", [](const Bucket& bucket, const BucketState&) { return std::pair(bucket.gradients, std::int64_t{0}); }));
  }
  return result;
}

std::vector<comm::ShardedTensor> DistributedOptimizer::state() {
  std::vector<comm::ShardedTensor> result;
  const auto add = [&](const char* prefix, at::Tensor BucketState::*member) {
    for (std::size_t i = 0; i < impl_->parameters.size(); ++i) {
      result.push_back(impl_->sharded(i, prefix, [&](const Bucket& bucket, const BucketState& state) {
        return std::pair(state.*member, bucket.owned().begin);
      }));
    }
  };
  impl_->wait_all();
  add(kParam, &BucketState::master);
  add(kExpAvg, &BucketState::exp_avg);
  add(kExpAvgSq, &BucketState::exp_avg_sq);
  return result;
}

std::vector<comm::ShardedTensor> DistributedOptimizer::weights() {
  impl_->wait_all();
  std::vector<comm::ShardedTensor> result;
  for (std::size_t i = 0; i < impl_->parameters.size(); ++i) {
    result.push_back(impl_->sharded(
        i, "", [](const Bucket& bucket, const BucketState&) { return std::pair(bucket.parameters, std::int64_t{0}); }));
  }
  return result;
}

std::vector<comm::WantedSlice> DistributedOptimizer::wanted_state() {
  impl_->wait_all();
  std::vector<comm::WantedSlice> result;
  const auto add = [&](const char* prefix, at::Tensor BucketState::*member) {
    for (std::size_t i = 0; i < impl_->parameters.size(); ++i) {
      const Parameter& parameter = impl_->parameters[i];
      const Range owned = impl_->bucket_of(i).owned();
      const GradientBuckets::Place& place = impl_->gradients.place(i);
      const Range held = impl_->part_in(i, owned);
      if (held.is_empty()) continue;
      const comm::Slice block = comm::block_slice(parameter.shape, parameter.split_dim, impl_->groups.tensor->rank(),
                                                  impl_->groups.tensor->size());
      result.push_back({.name = prefix + parameter.name,
                        .shape = parameter.shape,
                        .slice = comm::sub_slice(block, held.begin - place.range.begin, held.end - place.range.begin),
                        .target = elements(impl_->states[place.bucket].*member,
                                           {held.begin - owned.begin, held.end - owned.begin})});
    }
  };
  add(kParam, &BucketState::master);
  add(kExpAvg, &BucketState::exp_avg);
  add(kExpAvgSq, &BucketState::exp_avg_sq);
  return result;
}

void DistributedOptimizer::state_loaded() {
  const at::NoGradGuard no_grad;
  impl_->refresh_parameters();
}

void DistributedOptimizer::reset_from_parameters() {
  const at::NoGradGuard no_grad;
  impl_->wait_all();
  for (std::size_t i = 0; i < impl_->states.size(); ++i) {
    const Bucket& bucket = impl_->gradients.buckets()[i];
    BucketState& state = impl_->states[i];
    if (state.has_copy) state.master.copy_(elements(bucket.parameters, bucket.owned()));
    state.exp_avg.zero_();
    state.exp_avg_sq.zero_();
  }
}

void DistributedOptimizer::reset_from(const NamedTensors& whole) {
  const at::NoGradGuard no_grad;
  const std::map<std::string, at::Tensor> by_name(whole.begin(), whole.end());
  reset_from_parameters();
  for (const comm::WantedSlice& wanted : wanted_state()) {
    if (!wanted.name.starts_with(kParam)) continue;
    const auto found = by_name.find(wanted.name.substr(std::string_view(kParam).size()));
    if (found == by_name.end() || found->second.sizes() != at::IntArrayRef(wanted.shape)) {
      throw InternalError("{}: got no value of shape [{}], want one", wanted.name, fmt::join(wanted.shape, ", "));
    }
    const comm::Slice& slice = wanted.slice;
    const at::Tensor block =
        slice.dim < 0 ? found->second : found->second.narrow(slice.dim, slice.begin, slice.end - slice.begin);
    wanted.target.copy_(block.reshape(-1).narrow(0, slice.first, slice.numel()));
  }
  impl_->refresh_parameters();
}

std::int64_t DistributedOptimizer::state_bytes() const {
  std::size_t bytes = 0;
  for (const BucketState& state : impl_->states) {
    bytes += state.exp_avg.nbytes() + state.exp_avg_sq.nbytes() + (state.has_copy ? state.master.nbytes() : 0);
  }
  return static_cast<std::int64_t>(bytes);
}

std::int64_t DistributedOptimizer::gradient_bytes() const {
  std::size_t bytes = 0;
  for (const Bucket& bucket : impl_->gradients.buckets()) bytes += bucket.gradients.nbytes();
  return static_cast<std::int64_t>(bytes);
}

}  // namespace dfm::parallel
