// The tensor group's regions; the context group's is in context_attention.cpp.
#include "dfm/parallel/regions.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "parallel/saved_object.h"
#include "parallel/token_collectives.h"

namespace dfm::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum class Change { kNone, kSum, kGather, kReduceScatter };

at::Tensor change(const at::Tensor& x, Change how, comm::Group& group) {
  switch (how) {
    case Change::kSum:
      return start_sum(x, group).wait();
    case Change::kGather:
      return start_gather(x, group).wait();
    case Change::kReduceScatter:
      return start_reduce_scatter(x, group).wait();
    case Change::kNone:
      break;
  }
  return x;
}

struct Region {
  comm::GroupPtr group;
  Change forward, backward;
};

struct ChangeBetweenRegions : torch::autograd::Function<ChangeBetweenRegions> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Region& region) {
    save_object(*ctx, "region", region);
    return change(x, region.forward, *region.group);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto& region = saved_object<Region>(*ctx, "region");
    return {change(grads[0], region.backward, *region.group), {}};
  }
};

}  // namespace

at::Tensor enter_tensor_region(const at::Tensor& x, const Parallel& parallel) {
  if (parallel.tensor->is_alone()) return x;
  if (!parallel.sequence) return enter_tensor_region_whole(x, parallel);
  return ChangeBetweenRegions::apply(x, Region{parallel.tensor, Change::kGather, Change::kReduceScatter});
}

at::Tensor enter_tensor_region_whole(const at::Tensor& x, const Parallel& parallel) {
  // Whether a gradient is wanted is the same on all ranks, so they agree on whether backward sums.
  if (parallel.tensor->is_alone() || !x.requires_grad() || !at::GradMode::is_enabled()) return x;
  return ChangeBetweenRegions::apply(x, Region{parallel.tensor, Change::kNone, Change::kSum});
}

at::Tensor leave_tensor_region(const at::Tensor& x, const Parallel& parallel) {
  if (parallel.tensor->is_alone()) return x;
  const Region region = parallel.sequence ? Region{parallel.tensor, Change::kReduceScatter, Change::kGather}
                                          : Region{parallel.tensor, Change::kSum, Change::kNone};
  return ChangeBetweenRegions::apply(x, region);
}

}  // namespace dfm::parallel
