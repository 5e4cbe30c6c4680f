#include "parallel/gradient_buckets.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "dfm/base/error.h"

namespace dfm::parallel {
namespace {

constexpr std::int64_t kLeastBucketSize = 40'000'000;
constexpr std::int64_t kBucketSizePerRank = 1'000'000;

BucketKind kind_of(const comm::Group& group, const OptimizerSettings& settings) {
  const std::int64_t by_default = std::max(kLeastBucketSize, kBucketSizePerRank * group.size());
  return {.bucket_size = settings.bucket_size > 0 ? settings.bucket_size : by_default, .num_parts = group.size()};
}

}  // namespace

at::Tensor elements(const at::Tensor& flat, const Range& range) { return flat.narrow(0, range.begin, range.size()); }

// Called by autograd, on the thread that runs backward, when a gradient has been put into a parameter's grad.
class GradientBuckets::Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(GradientBuckets& buckets, std::size_t index) : buckets_(buckets), index_(index) {}
  void operator()(const torch::autograd::Variable&) override { buckets_.take_gradient(index_); }

 private:
  GradientBuckets& buckets_;
  std::size_t index_;
};

GradientBuckets::GradientBuckets(const std::vector<Parameter>& parameters, const ReduceGroups& groups,
                                 const OptimizerSettings& settings)
    : parameters_(parameters), settings_(settings), num_tensor_ranks_(groups.tensor->size()) {
  std::vector<PlannedParameter> planned;
  for (const Parameter& parameter : parameters) {
    // Without tensor parallelism both kinds have one group, and are one.
    planned.push_back({.numel = parameter.tensor.numel(),
                       .stage = parameter.stage,
                       .is_split = parameter.split_dim >= 0 && num_tensor_ranks_ > 1});
  }
  places_.resize(parameters.size());
  for (BucketPlan& plan :
       plan_buckets(planned, kind_of(*groups.data_context, settings), kind_of(*groups.replicas, settings))) {
    for (std::size_t i = 0; i < plan.members.size(); ++i) places_[plan.members[i]] = {buckets_.size(), plan.ranges[i]};
    const comm::GroupPtr& group = plan.is_split ? groups.data_context : groups.replicas;
    buckets_.push_back({.plan = std::move(plan),
                        .group = group,
                        .is_sharded = settings.use_distributed_optimizer && !group->is_alone()});
  }
  move_parameters();
  has_arrived_.resize(parameters.size());
  num_missing_.resize(buckets_.size());
  zero();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameters[i].tensor, std::make_unique<Hook>(*this, i));
  }
}

GradientBuckets::~GradientBuckets() {
  for (const Parameter& parameter : parameters_) {
    torch::autograd::impl::set_post_acc_grad_hooks(parameter.tensor, nullptr);
  }
}

void GradientBuckets::move_parameters() {
  const at::NoGradGuard no_grad;
  gradients_.resize(parameters_.size());
  for (Bucket& bucket : buckets_) {
    const at::TensorOptions options = parameters_[bucket.plan.members.front()].tensor.options().requires_grad(false);
    const at::ScalarType master_dtype = options.dtype() == at::kDouble ? at::kDouble : at::kFloat;
    bucket.parameters = at::zeros({bucket.plan.size}, options);
    bucket.gradients = at::zeros({bucket.plan.size}, options.dtype(master_dtype));
    for (std::size_t i = 0; i < bucket.plan.members.size(); ++i) {
      const std::size_t index = bucket.plan.members[i];
      at::Tensor parameter = parameters_[index].tensor;
      const at::Tensor moved = elements(bucket.parameters, bucket.plan.ranges[i]).view(parameter.sizes());
      moved.copy_(parameter.detach());
      parameter.set_data(moved);  // its own memory is freed here
      parameter.set_requires_grad(true);
      gradients_[index] = elements(bucket.gradients, bucket.plan.ranges[i]).view(parameter.sizes());
    }
  }
}

void GradientBuckets::zero() {
  const at::NoGradGuard no_grad;
  for (const comm::Work& work : works_) work.wait();
  works_.clear();
  for (const Bucket& bucket : buckets_) bucket.gradients.zero_();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor& parameter = parameters_[i].tensor;
    // Of one dtype autograd adds to the bucket itself: its sum is in place where a grad exists.
    parameter.mutable_grad() = parameter.scalar_type() == gradients_[i].scalar_type() ? gradients_[i] : at::Tensor();
  }
  is_last_row_ = false;
  num_launched_ = 0;
}

void GradientBuckets::begin_last_row() {
  is_last_row_ = true;
  std::fill(has_arrived_.begin(), has_arrived_.end(), false);
  for (std::size_t i = 0; i < buckets_.size(); ++i) num_missing_[i] = buckets_[i].plan.members.size();
}

void GradientBuckets::take_gradient(std::size_t index) {
  const at::NoGradGuard no_grad;
  const Place& place = places_[index];
  if (place.bucket < num_launched_ || (is_last_row_ && has_arrived_[index])) {
    throw InternalError("gradient of {}: got one after the last row's, want zero_gradients() before the next step",
                        parameters_[index].name);
  }
  at::Tensor& grad = parameters_[index].tensor.mutable_grad();
  const at::Tensor& sum = gradients_[index];
  if (grad.const_data_ptr() != sum.const_data_ptr()) {
    sum.add_(grad);
    grad = grad.scalar_type() == sum.scalar_type() ? sum : at::Tensor();
  }
  if (!is_last_row_) return;
  has_arrived_[index] = true;
  --num_missing_[place.bucket];
  if (settings_.overlap_grad_reduce) launch_complete();
}

// Why reductions in the middle of backward cannot deadlock, even where a collective blocks its thread until every
// member has called it. Collectives wait for each other in a circle only if two ranks call two of them in different
// orders, directly or through others. Call B_k the launches of bucket k (one on each tensor index for split parameters,
// one over all for replicated ones) and S_d the collectives of the tensor and context groups within data rank d.
//   - Every rank calls B_0, B_1, ... in this order: that is what strict order is for. Buckets that a rank's graph has
//     not reached, and all those of a rank without a row, come in reduce(), in the same order.
//   - The tensor and context ranks of one data rank work on the same row through the same graph, which autograd walks
//     in the same order. So they put the launches at the same places among the collectives of S_d, and no member of S_d
//     belongs to another data rank.
// Sort all collectives by (number of launches before it on its ranks, place in S_d): every rank calls them in this
// order, and the first one that is not done can always go on. How many rows the data ranks have, and how far each is,
// does not matter.
void GradientBuckets::launch_complete() {
  while (num_launched_ < buckets_.size() && num_missing_[num_launched_] == 0) launch(num_launched_);
}

void GradientBuckets::launch(std::size_t index) {
  const Bucket& bucket = buckets_[index];
  ++num_launched_;
  if (!bucket.plan.is_split && num_tensor_ranks_ > 1) {
    for (const std::size_t member : bucket.plan.members) {
      if (!parameters_[member].is_partial) gradients_[member].mul_(1.0 / num_tensor_ranks_);
    }
  }
  if (bucket.group->is_alone()) return;
  works_.push_back(bucket.is_sharded
                       ? bucket.group->reduce_scatter(elements(bucket.gradients, bucket.part()), bucket.gradients)
                       : bucket.group->all_reduce(bucket.gradients));
}

void GradientBuckets::reduce() {
  const at::NoGradGuard no_grad;
  while (num_launched_ < buckets_.size()) launch(num_launched_);
  for (const comm::Work& work : works_) work.wait();
  works_.clear();
}

}  // namespace dfm::parallel
