#pragma once
// The learning rate as a pure function of the step: nothing to store, nothing to restore.
#include <cstdint>

#include "dfm/train/config.h"

namespace dfm::train {

// The rate that the step after `steps_done` completed ones is taken with, as Megatron-LM has it
// (core/optimizer_param_scheduler.py, OptimizerParamScheduler.get_lr): with w = lr_warmup_iters and d = lr_decay_iters
//   n <= w, w > 0:  lr_warmup_init + (lr - lr_warmup_init) n / w    (so the first step has lr_warmup_init itself)
//   constant:       lr
//   n > d:          min_lr
//   cosine:         min_lr + (lr - min_lr) (1 + cos(pi (n - w) / (d - w))) / 2
// A run shorter than its warm-up is fine: it ends on the way up. Iteration i on the console is the step with
// steps_done = i - 1, and the rate shown is the one it was taken with (Megatron shows that of the next).
double learning_rate(const OptimizerConfig& optimizer, const SchedulerConfig& scheduler, std::int64_t train_iters,
                     std::int64_t steps_done);

}  // namespace dfm::train
