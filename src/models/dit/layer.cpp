#include "models/dit/layer.h"

#include <ATen/ATen.h>

#include "dfm/ops/attention.h"
#include "dfm/ops/head_norm.h"
#include "dfm/ops/modulate.h"
#include "dfm/parallel/regions.h"
#include "models/dit/recompute.h"

namespace dfm::models {
namespace {

// DFM writes 1e-6 where it has no effect; what its layers compute with is Megatron's default.
constexpr double kNormEps = 1e-5;

}  // namespace

DitLayer::DitLayer(const DitConfig& config, const parallel::Parallel& parallel,
                   const std::function<at::Tensor(const std::string&)>& parameter)
    : config_(config),
      parallel_(parallel),
      num_heads_(config.num_attention_heads / parallel.tensor->size()),
      ada_down_(parameter("adaLN.adaLN_modulation.1.weight")),
      ada_up_(parameter("adaLN.adaLN_modulation.2.weight")),
      qkv_weight_(parameter("full_self_attention.linear_qkv.weight")),
      cross_q_weight_(parameter("cross_attention.linear_q.weight")),
      fc1_weight_(parameter("mlp.linear_fc1.weight")),
      fc2_weight_(parameter("mlp.linear_fc2.weight")),
      qkv_(parallel, qkv_weight_),
      self_q_norm_(parameter("full_self_attention.q_layernorm.weight")),
      self_k_norm_(parameter("full_self_attention.k_layernorm.weight")),
      self_proj_(parallel, parameter("full_self_attention.linear_proj.weight")),
      cross_q_(parallel, cross_q_weight_),
      cross_kv_(parallel, parameter("cross_attention.linear_kv.weight")),
      cross_q_norm_(parameter("cross_attention.q_layernorm.weight")),
      cross_k_norm_(parameter("cross_attention.k_layernorm.weight")),
      cross_proj_(parallel, parameter("cross_attention.linear_proj.weight")),
      fc1_(parallel, fc1_weight_),
      fc2_(parallel, fc2_weight_) {}

bool DitLayer::is_selective() const {
  return config_.recompute_granularity == Recompute::kSelective && at::GradMode::is_enabled();
}

at::Tensor DitLayer::column(const parallel::ColumnParallelLinear& linear, const at::Tensor& weight, const Normed& in,
                            const parallel::RowSegments& tokens) const {
  if (!is_selective()) {
    return linear.forward(ops::norm_modulate(in.x_TD, in.shift_ND, in.scale_ND, tokens.local, kNormEps));
  }
  return linear_recompute(
      [local = tokens.local, parallel = parallel_](const std::vector<at::Tensor>& inputs) {
        return parallel::enter_tensor_region(ops::norm_modulate(inputs[0], inputs[1], inputs[2], local, kNormEps),
                                             parallel);
      },
      {in.x_TD, in.shift_ND, in.scale_ND}, weight);
}

at::Tensor DitLayer::self_attention(const Normed& in, const parallel::RowSegments& tokens) const {
  const auto qkv = ops::split_heads_norm(column(qkv_, qkv_weight_, in, tokens), num_heads_, 3,
                                         {self_q_norm_, self_k_norm_}, kNormEps);
  return self_proj_.forward(parallel::context_attention(qkv[0], qkv[1], qkv[2], tokens, parallel_).flatten(1));
}

at::Tensor DitLayer::cross_attention(const Normed& in, const at::Tensor& text_LE, const parallel::RowSegments& tokens,
                                     const ops::Segments& text) const {
  // Without any text the result is exactly 0, on every rank: all have the whole text. With gradients the branch is
  // still run, so that each parameter gets one.
  if (text.num_tokens() == 0 && !at::GradMode::is_enabled()) return at::zeros_like(in.x_TD);
  const auto q =
      ops::split_heads_norm(column(cross_q_, cross_q_weight_, in, tokens), num_heads_, 1, {cross_q_norm_}, kNormEps);
  const auto kv = ops::split_heads_norm(cross_kv_.forward_whole(text_LE), num_heads_, 2, {cross_k_norm_}, kNormEps);
  const at::Tensor out_THd = ops::packed_attention(q[0], kv[0], kv[1], tokens.context, text, DitInput::kTextRows);
  return cross_proj_.forward(out_THd.flatten(1));
}

at::Tensor DitLayer::mlp(const Normed& in, const parallel::RowSegments& tokens) const {
  const at::Tensor wide = column(fc1_, fc1_weight_, in, tokens);
  if (!is_selective()) return fc2_.forward(at::gelu(wide));
  const at::Tensor y =
      linear_recompute([](const std::vector<at::Tensor>& inputs) { return at::gelu(inputs[0]); }, {wide}, fc2_weight_);
  return parallel::leave_tensor_region(y, parallel_);
}

at::Tensor DitLayer::forward(const at::Tensor& x_TD, const at::Tensor& condition_ND, const at::Tensor& text_LE,
                             const parallel::RowSegments& tokens, const ops::Segments& text, Dit::Trace* trace,
                             const std::string& prefix) const {
  const auto note = [&](const char* name, const at::Tensor& value) {
    if (trace != nullptr) trace->tensors.emplace_back(prefix + name, value);
  };
  const at::Tensor mod_N9D =
      at::linear(at::linear(condition_ND, ada_down_), ada_up_).view({condition_ND.size(0), 9, config_.hidden_size});
  note("mod", mod_N9D);
  // (shift, scale, gate) of self-attention, of cross-attention, of the MLP.
  const std::vector<at::Tensor> mod = mod_N9D.unbind(1);

  at::Tensor branch_TD = self_attention({x_TD, mod[0], mod[1]}, tokens);
  note("self_attn", branch_TD);
  at::Tensor y_TD = ops::gate_residual(x_TD, mod[2], branch_TD, tokens.local);

  branch_TD = cross_attention({y_TD, mod[3], mod[4]}, text_LE, tokens, text);
  note("cross_attn", branch_TD);
  y_TD = ops::gate_residual(y_TD, mod[5], branch_TD, tokens.local);

  branch_TD = mlp({y_TD, mod[6], mod[7]}, tokens);
  note("mlp", branch_TD);
  y_TD = ops::gate_residual(y_TD, mod[8], branch_TD, tokens.local);
  note("out", y_TD);
  return y_TD;
}

}  // namespace dfm::models
