#include "dfm/parallel/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "dfm/parallel/regions.h"
#include "parallel/saved_object.h"
#include "parallel/token_collectives.h"

namespace dfm::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// enter_tensor_region and a linear as one: in backward the input's gradient crosses the group while the weight's is
// computed, and gathered tokens are gathered again instead of kept.
struct ColumnLinear : torch::autograd::Function<ColumnLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const comm::GroupPtr& group, bool gathers_tokens) {
    ctx->save_for_backward({x, weight});
    save_object(*ctx, "group", group);
    ctx->saved_data["gathers_tokens"] = gathers_tokens;
    return at::linear(gathers_tokens ? start_gather(x, *group).wait() : x, weight);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &grad = grads[0];
    const comm::GroupPtr group = saved_object<comm::GroupPtr>(*ctx, "group");
    const bool gathers_tokens = ctx->saved_data.at("gathers_tokens").toBool();
    // Which gradients are wanted is the same on all ranks.
    const bool wants_x = ctx->needs_input_grad(0), wants_weight = ctx->needs_input_grad(1);
    PendingTensor whole_x{x, {}, {}}, grad_x;
    if (gathers_tokens && wants_weight) whole_x = start_gather(x, *group);
    if (wants_x) {
      const at::Tensor part = at::mm(grad, weight);
      grad_x = gathers_tokens ? start_reduce_scatter(part, *group) : start_sum(part, *group);
    }
    at::Tensor grad_weight;
    if (wants_weight) grad_weight = at::mm(grad.t(), whole_x.wait());
    return {grad_x.wait(), grad_weight, {}, {}};
  }
};

}  // namespace

ColumnParallelLinear::ColumnParallelLinear(const Parallel& parallel, at::Tensor weight)
    : parallel_(parallel), weight_(std::move(weight)) {}

at::Tensor ColumnParallelLinear::forward(const at::Tensor& x) const {
  if (parallel_.tensor->is_alone()) return at::linear(x, weight_);
  return ColumnLinear::apply(x, weight_, parallel_.tensor, parallel_.sequence);
}

at::Tensor ColumnParallelLinear::forward_whole(const at::Tensor& x) const {
  if (parallel_.tensor->is_alone()) return at::linear(x, weight_);
  return ColumnLinear::apply(x, weight_, parallel_.tensor, /*gathers_tokens=*/false);
}

RowParallelLinear::RowParallelLinear(const Parallel& parallel, at::Tensor weight)
    : parallel_(parallel), weight_(std::move(weight)) {}

at::Tensor RowParallelLinear::forward(const at::Tensor& x) const {
  return leave_tensor_region(at::linear(x, weight_), parallel_);
}

}  // namespace dfm::parallel
