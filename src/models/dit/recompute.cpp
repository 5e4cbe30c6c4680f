#include "models/dit/recompute.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dfm::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct KeptBody : torch::CustomClassHolder {
  RecomputeBody body;
  std::size_t num_inputs = 0;
};

void keep(AutogradContext* ctx, const RecomputeBody& body, at::TensorList inputs, at::TensorList parameters) {
  auto kept = c10::make_intrusive<KeptBody>();
  kept->body = body;
  kept->num_inputs = inputs.size();
  ctx->saved_data["body"] = c10::IValue::make_capsule(kept);
  variable_list saved = inputs.vec();
  saved.insert(saved.end(), parameters.begin(), parameters.end());
  ctx->save_for_backward(saved);
}

// The body's value with gradients on, from inputs that are leaves of their own.
struct Replay {
  variable_list inputs, parameters;
  at::Tensor value;

  explicit Replay(const AutogradContext* ctx) {
    const auto kept = c10::static_intrusive_pointer_cast<KeptBody>(ctx->saved_data.at("body").toCapsule());
    for (const at::Tensor& tensor : ctx->get_saved_variables()) {
      if (inputs.size() < kept->num_inputs) {
        inputs.push_back(tensor.detach().requires_grad_(tensor.requires_grad()));
      } else {
        parameters.push_back(tensor);
      }
    }
    const at::AutoGradMode with_gradients(true);
    value = kept->body(inputs);
  }

  // A gradient for each of `tensors`, undefined where none is asked for.
  [[nodiscard]] variable_list gradients(const variable_list& tensors, const at::Tensor& grad) const {
    variable_list wanted;
    for (const at::Tensor& tensor : tensors) {
      if (tensor.requires_grad()) wanted.push_back(tensor);
    }
    if (wanted.empty()) return variable_list(tensors.size());
    const variable_list found =
        torch::autograd::grad({value}, wanted, {grad}, std::nullopt, false, /*allow_unused=*/true);
    variable_list result;
    auto next = found.begin();
    for (const at::Tensor& tensor : tensors) result.push_back(tensor.requires_grad() ? *next++ : at::Tensor());
    return result;
  }
};

struct Recompute : torch::autograd::Function<Recompute> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, at::TensorList parameters,
                            const RecomputeBody& body) {
    keep(ctx, body, inputs, parameters);
    return body(inputs.vec());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Replay replay(ctx);
    variable_list all = replay.inputs;
    all.insert(all.end(), replay.parameters.begin(), replay.parameters.end());
    variable_list result = replay.gradients(all, grads[0]);
    result.emplace_back();  // the body
    return result;
  }
};

struct LinearRecompute : torch::autograd::Function<LinearRecompute> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, const at::Tensor& weight,
                            const RecomputeBody& body) {
    keep(ctx, body, inputs, weight);
    return at::linear(body(inputs.vec()), weight);
  }

  // The products are those of at::linear's own backward.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Replay replay(ctx);
    const at::Tensor& weight = replay.parameters.front();
    variable_list result = replay.gradients(replay.inputs, grads[0].mm(weight));
    result.push_back(weight.requires_grad() ? grads[0].t().mm(replay.value.detach()) : at::Tensor());
    result.emplace_back();  // the body
    return result;
  }
};

}  // namespace

at::Tensor recompute(RecomputeBody body, const std::vector<at::Tensor>& inputs,
                     const std::vector<at::Tensor>& parameters) {
  return Recompute::apply(at::TensorList(inputs), at::TensorList(parameters), std::move(body));
}

at::Tensor linear_recompute(RecomputeBody body, const std::vector<at::Tensor>& inputs, const at::Tensor& weight) {
  return LinearRecompute::apply(at::TensorList(inputs), weight, std::move(body));
}

}  // namespace dfm::models
