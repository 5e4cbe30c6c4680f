#pragma once
// DFM's DiT on a packed row, written once for any layout: it knows ranks only through parallel/. Legend: T this rank's
// tokens between the matrices (of one rank: of the row), N segments of the row, L text rows of all segments, D hidden,
// E text width, C token channels (64).
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dfm/models/dit/dit_config.h"
#include "dfm/ops/segments.h"
#include "dfm/parallel/parallel.h"
#include "dfm/parallel/parameter.h"
#include "dfm/parallel/row.h"

namespace dfm::models {

struct DitInput {
  at::Tensor x_TC;               // network input, already scaled by c_in; compute dtype; padding rows zero
  parallel::RowSegments tokens;  // segments of the row and of its parts
  at::Tensor position_T3;  // int64 (t, h, w) of each of this rank's tokens; on the CPU: a GPU's must be waited for
  at::Tensor c_noise_N;    // float32 ln(sigma) / 4 (float64 in fp64 runs)
  at::Tensor fps_N;        // float32
  at::Tensor text_LE;      // compute dtype; the rows that are there, without the zero rows after them
  ops::Segments text;      // a segment may be empty: text dropped, or no text
  // Each segment attends to text.length(i) rows and (512 - length) zero rows, which are one key of score 0 and value 0
  // with weight 512 - length. Never more rows than this.
  static constexpr std::int64_t kTextRows = 512;
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// What a new model's parameters are, by name in model order, as Megatron initialises DFM's from rng.seed by name;
// whole, whatever the layout. The values are made in float32, then rounded to `dtype`: float32 masters of a bfloat16
// model come from a call of their own.
NamedTensors initial_parameters(const DitConfig& config, at::ScalarType dtype, at::Device device, std::uint64_t seed);

class Dit {
 public:
  // This rank's parts of the parameters on `device` in `dtype`, with the values of initial_parameters(); they require
  // gradients. The layout is that of `parallel`, whatever the config's axes say. ConfigError by name for heads that the
  // groups do not divide.
  Dit(const DitConfig& config, at::ScalarType dtype, at::Device device, std::uint64_t seed,
      const parallel::Parallel& parallel = {});
  ~Dit();
  Dit(Dit&&) noexcept;

  // [T, C]: the network's output F of this rank's tokens, in the compute dtype. All ranks of the tensor and context
  // groups call it with their parts of one row, and backward too. Differentiable with respect to parameters and x_TC.
  [[nodiscard]] at::Tensor forward(const DitInput& input) const;

  // DFM's names without `module.`, row order of linear_qkv and linear_kv interleaved by head; in model order. On
  // several tensor ranks: this rank's parts.
  [[nodiscard]] const NamedTensors& parameters() const;
  // The same tensors, with what an optimizer over ranks needs to know.
  [[nodiscard]] std::vector<parallel::Parameter> placed_parameters() const;
  // Called in forward before the parameters of a stage (parallel::Parameter::stage) are first used; not again when
  // backward recomputes.
  void set_before_stage(std::function<void(int stage)> before_stage);
  // What a weight file holds beside the parameters for DFM's sake: the position table and affline_norm (constant,
  // ignored on load).
  [[nodiscard]] NamedTensors constant_tensors(at::ScalarType dtype) const;
  // Copies values by name (any dtype, whole shapes: this rank takes its parts). Names may carry `module.`;
  // `pos_embedder...`, `affline_norm...` and `..._extra_state` are ignored; stacked `decoder.layers.<x>` tensors with a
  // leading layer axis are taken apart. Missing, unknown or misshapen names are one CheckpointError that lists them.
  void load(const NamedTensors& tensors, const std::string& where);

  [[nodiscard]] const DitConfig& config() const;
  [[nodiscard]] const parallel::Parallel& parallel() const;

  // For tests: what forward computes on the way, by the golden files' names (cond, embed, layerK.mod, layerK.self_attn,
  // ...).
  struct Trace;
  [[nodiscard]] at::Tensor forward(const DitInput& input, Trace* trace) const;
  struct Trace {
    NamedTensors tensors;
  };

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Parameters that the tensor group splits, and those that each of its ranks has whole.
struct DitParameterCounts {
  std::int64_t split = 0, replicated = 0;
};
DitParameterCounts dit_parameter_counts(const DitConfig& config);

// Floating-point operations of forward and backward for a row (multiply-add = 2; backward = 2 x forward; recompute not
// counted): linears, self-attention 4 sum n_i^2 D, cross-attention with the text rows that exist, adaLN.
double dit_flops(const DitConfig& config, const std::vector<std::int64_t>& token_lengths,
                 const std::vector<std::int64_t>& text_lengths);

}  // namespace dfm::models
