#include "models/dit/recompute.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dfm::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Body = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

struct KeptBody : torch::CustomClassHolder {
  Body body;
  std::size_t num_inputs = 0;
};

struct Recompute : torch::autograd::Function<Recompute> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList inputs, at::TensorList parameters, const Body& body) {
    auto kept = c10::make_intrusive<KeptBody>();
    kept->body = body;
    kept->num_inputs = inputs.size();
    ctx->saved_data["body"] = c10::IValue::make_capsule(kept);
    variable_list saved = inputs.vec();
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(saved);
    return body(inputs.vec());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kept = c10::static_intrusive_pointer_cast<KeptBody>(ctx->saved_data.at("body").toCapsule());
    variable_list saved = ctx->get_saved_variables();
    variable_list wanted, inputs;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      const bool needs_gradient = saved[i].requires_grad();
      if (i < kept->num_inputs) {
        saved[i] = saved[i].detach().requires_grad_(needs_gradient);
        inputs.push_back(saved[i]);
      }
      if (needs_gradient) wanted.push_back(saved[i]);
    }
    const at::AutoGradMode with_gradients(true);
    const variable_list found =
        torch::autograd::grad({kept->body(inputs)}, wanted, {grads[0]}, std::nullopt, false, /*allow_unused=*/true);
    variable_list result;
    auto next = found.begin();
    for (const at::Tensor& tensor : saved) result.push_back(tensor.requires_grad() ? *next++ : at::Tensor());
    result.emplace_back();  // the body
    return result;
  }
};

}  // namespace

at::Tensor recompute(Body body, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters) {
  return Recompute::apply(at::TensorList(inputs), at::TensorList(parameters), std::move(body));
}

}  // namespace dfm::models
