#include "dfm/train/optimizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <map>

#include "dfm/base/error.h"
#include "dfm/ops/adamw.h"

namespace dfm::train {
namespace {

constexpr const char* kParam = "optimizer.state.param.";
constexpr const char* kExpAvg = "optimizer.state.exp_avg.";
constexpr const char* kExpAvgSq = "optimizer.state.exp_avg_sq.";

}  // namespace

Optimizer::Optimizer(const NamedTensors& parameters, const OptimizerConfig& config) : config_(config) {
  entries_.reserve(parameters.size());
  for (const auto& [name, parameter] : parameters) {
    Entry entry;
    entry.name = name;
    entry.parameter = parameter;
    if (!entry.parameter.requires_grad()) entry.parameter.set_requires_grad(true);
    const at::ScalarType dtype = parameter.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    // The master shares the model's memory where the dtypes agree.
    entry.master = parameter.detach().to(dtype);
    entry.exp_avg = at::zeros_like(entry.master);
    entry.exp_avg_sq = at::zeros_like(entry.master);
    entry.is_decayed = parameter.dim() > 1;
    entries_.push_back(std::move(entry));
  }
}

void Optimizer::accumulate() {
  for (Entry& entry : entries_) {
    at::Tensor& grad = entry.parameter.mutable_grad();
    // Of one dtype autograd itself has added this row to the earlier ones.
    if (!grad.defined() || grad.scalar_type() == entry.master.scalar_type()) continue;
    if (!entry.gradient.defined()) {
      entry.gradient = grad.to(entry.master.scalar_type());
    } else if (!entry.has_gradient) {
      entry.gradient.copy_(grad);
    } else {
      entry.gradient.add_(grad);
    }
    entry.has_gradient = true;
    grad.reset();
  }
}

void Optimizer::collect() {
  for (Entry& entry : entries_) {
    at::Tensor& grad = entry.parameter.mutable_grad();
    if (grad.defined()) {
      entry.gradient = grad.is_contiguous() ? grad : grad.contiguous();
      entry.has_gradient = true;
      grad.reset();
    }
    if (entry.has_gradient) continue;
    // No row reached it (say, all text dropped): a gradient of zero, whatever the packing.
    if (entry.gradient.defined()) {
      entry.gradient.zero_();
    } else {
      entry.gradient = at::zeros_like(entry.master);
    }
    entry.has_gradient = true;
  }
}

double Optimizer::step(double lr, double divisor, std::int64_t step) {
  const at::NoGradGuard no_grad;
  accumulate();
  collect();
  std::vector<at::Tensor> gradients;
  std::vector<ops::AdamwTensor> tensors;
  gradients.reserve(entries_.size());
  tensors.reserve(entries_.size());
  for (const Entry& entry : entries_) {
    gradients.push_back(entry.gradient);
    const bool is_copy = !entry.master.is_alias_of(entry.parameter);
    tensors.push_back({entry.master, entry.gradient, entry.exp_avg, entry.exp_avg_sq,
                       is_copy ? entry.parameter.detach() : at::Tensor(),
                       entry.is_decayed ? config_.weight_decay : 0.0});
  }
  const double norm = std::sqrt(ops::sum_of_squares(gradients)) / divisor;
  if (std::isfinite(norm)) {
    const double clip = config_.clip_grad > 0 && norm > config_.clip_grad ? config_.clip_grad / norm : 1.0;
    ops::adamw_step(tensors, {.lr = lr,
                              .beta1 = config_.adam_beta1,
                              .beta2 = config_.adam_beta2,
                              .eps = config_.adam_eps,
                              .step = step,
                              .gradient_scale = clip / divisor});
  }
  zero_gradients();
  return norm;
}

void Optimizer::zero_gradients() {
  for (Entry& entry : entries_) {
    entry.parameter.mutable_grad().reset();
    entry.has_gradient = false;
    // Buffers of a wider dtype are kept; those that backward made anew go back to the allocator.
    if (entry.master.is_alias_of(entry.parameter)) entry.gradient.reset();
  }
}

NamedTensors Optimizer::gradients() const {
  NamedTensors result;
  for (const Entry& entry : entries_) {
    const at::Tensor& grad = entry.parameter.grad();
    result.emplace_back(entry.name, grad.defined() ? grad : entry.has_gradient ? entry.gradient : at::Tensor());
  }
  return result;
}

NamedTensors Optimizer::state() const {
  NamedTensors result;
  result.reserve(3 * entries_.size());
  for (const Entry& entry : entries_) result.emplace_back(kParam + entry.name, entry.master.detach());
  for (const Entry& entry : entries_) result.emplace_back(kExpAvg + entry.name, entry.exp_avg);
  for (const Entry& entry : entries_) result.emplace_back(kExpAvgSq + entry.name, entry.exp_avg_sq);
  return result;
}

void Optimizer::load_state(const NamedTensors& state, const std::string& where) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> by_name(state.begin(), state.end());
  std::string problems;
  const auto load = [&](const std::string& name, at::Tensor target) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      problems += fmt::format("{}{} missing", problems.empty() ? "" : ", ", name);
    } else if (found->second.sizes() != target.sizes()) {
      problems += fmt::format("{}{} of shape [{}] instead of [{}]", problems.empty() ? "" : ", ", name,
                              fmt::join(found->second.sizes(), ", "), fmt::join(target.sizes(), ", "));
    } else {
      target.copy_(found->second);
    }
  };
  for (Entry& entry : entries_) {
    load(kParam + entry.name, entry.master);
    load(kExpAvg + entry.name, entry.exp_avg);
    load(kExpAvgSq + entry.name, entry.exp_avg_sq);
  }
  if (!problems.empty()) throw CheckpointError("{}: got {}, want the state of this model", where, problems);
  for (Entry& entry : entries_) {
    if (!entry.master.is_alias_of(entry.parameter)) entry.parameter.detach().copy_(entry.master);
  }
}

void Optimizer::reset_from_model() {
  const at::NoGradGuard no_grad;
  for (Entry& entry : entries_) {
    if (!entry.master.is_alias_of(entry.parameter)) entry.master.copy_(entry.parameter.detach());
    entry.exp_avg.zero_();
    entry.exp_avg_sq.zero_();
  }
}

}  // namespace dfm::train
