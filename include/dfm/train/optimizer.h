#pragma once
// AdamW with mixed precision: master weights, moments and the accumulated gradient of each parameter in float32
// (float64 in fp64 runs); the model's own tensors are copies in the compute dtype, or the masters themselves where the
// dtypes agree.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dfm/train/config.h"

namespace dfm::train {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

class Optimizer {
 public:
  // `parameters`: the model's leaf tensors by name, float32, bfloat16 or float64. They are updated in place.
  Optimizer(const NamedTensors& parameters, const OptimizerConfig& config);

  // Moves what backward left in the parameters' grad into the accumulated gradients: call after each row.
  void accumulate();
  // Divides the accumulated sums by `divisor`, clips them to config.clip_grad and takes a step with rate `lr`.
  // `step` counts from 1: the correction of the moments. Gives the norm of the divided gradients before clipping. When
  // that is not finite nothing is changed.
  double step(double lr, double divisor, std::int64_t step);
  // Forgets accumulated gradients (step() does so itself).
  void zero_gradients();

  // The accumulated sums, by name; undefined where no row has reached the parameter.
  [[nodiscard]] NamedTensors gradients() const;

  // optimizer.state.{param,exp_avg,exp_avg_sq}.<name>, whole shapes, in the masters' dtype.
  [[nodiscard]] NamedTensors state() const;
  // Copies values by name and refreshes the model's copies. Missing or misshapen names are one CheckpointError.
  void load_state(const NamedTensors& state, const std::string& where);
  // Takes the model's present values as masters and zeroes the moments (after weights were loaded into the model).
  void reset_from_model();

 private:
  struct Entry {
    std::string name;
    at::Tensor parameter, master, gradient, exp_avg, exp_avg_sq;
    bool is_decayed = false;
    bool has_gradient = false;  // `gradient` holds this step's sum, not an old one
  };
  void collect();
  OptimizerConfig config_;
  std::vector<Entry> entries_;
};

}  // namespace dfm::train
