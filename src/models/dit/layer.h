#pragma once
// One layer: adaLN-LoRA modulation, self-attention, cross-attention to the text, MLP. Legend as in dit.h.
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "dfm/models/dit/dit.h"
#include "dfm/parallel/linear.h"

namespace dfm::models {

class DitLayer {
 public:
  // parameter(name) finds this rank's part of a parameter of this layer by its name without the layer's prefix.
  DitLayer(const DitConfig& config, const parallel::Parallel& parallel,
           const std::function<at::Tensor(const std::string&)>& parameter);

  // x: the residual stream; condition: SiLU of the conditioning; text: the text rows. `prefix` names the trace's
  // entries.
  [[nodiscard]] at::Tensor forward(const at::Tensor& x_TD, const at::Tensor& condition_ND, const at::Tensor& text_LE,
                                   const parallel::RowSegments& tokens, const ops::Segments& text, Dit::Trace* trace,
                                   const std::string& prefix) const;

 private:
  // What a branch reads: the residual stream, normalised with shift and scale of each segment.
  struct Normed {
    at::Tensor x_TD, shift_ND, scale_ND;
  };
  // A column layer of the normalised stream; the normalised values are not kept with selective recompute.
  [[nodiscard]] at::Tensor column(const parallel::ColumnParallelLinear& linear, const at::Tensor& weight,
                                  const Normed& in, const parallel::RowSegments& tokens) const;
  [[nodiscard]] at::Tensor self_attention(const Normed& in, const parallel::RowSegments& tokens) const;
  [[nodiscard]] at::Tensor cross_attention(const Normed& in, const at::Tensor& text_LE,
                                           const parallel::RowSegments& tokens, const ops::Segments& text) const;
  [[nodiscard]] at::Tensor mlp(const Normed& in, const parallel::RowSegments& tokens) const;
  [[nodiscard]] bool is_selective() const;

  DitConfig config_;
  parallel::Parallel parallel_;
  std::int64_t num_heads_;  // of this tensor rank
  at::Tensor ada_down_, ada_up_;
  at::Tensor qkv_weight_, cross_q_weight_, fc1_weight_, fc2_weight_;
  parallel::ColumnParallelLinear qkv_;
  at::Tensor self_q_norm_, self_k_norm_;
  parallel::RowParallelLinear self_proj_;
  parallel::ColumnParallelLinear cross_q_, cross_kv_;
  at::Tensor cross_q_norm_, cross_k_norm_;
  parallel::RowParallelLinear cross_proj_;
  parallel::ColumnParallelLinear fc1_;
  parallel::RowParallelLinear fc2_;
};

}  // namespace dfm::models
