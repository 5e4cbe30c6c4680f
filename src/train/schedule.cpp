#include "dfm/train/schedule.h"

#include <cmath>
#include <numbers>

namespace dfm::train {

double learning_rate(const OptimizerConfig& optimizer, const SchedulerConfig& scheduler, std::int64_t train_iters,
                     std::int64_t steps_done) {
  const auto n = static_cast<double>(steps_done);
  const auto warmup = static_cast<double>(scheduler.lr_warmup_iters);
  const auto decay = static_cast<double>(scheduler.lr_decay_iters.value_or(train_iters));
  if (warmup > 0 && n <= warmup)
    return scheduler.lr_warmup_init + (optimizer.lr - scheduler.lr_warmup_init) * n / warmup;
  if (scheduler.lr_decay_style == LrDecay::kConstant) return optimizer.lr;
  // n >= decay also where the warm-up is longer than the decay: no division by zero, no rise.
  if (n >= decay) return optimizer.min_lr;
  const double share = (n - warmup) / (decay - warmup);
  return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * 0.5 * (1 + std::cos(std::numbers::pi * share));
}

}  // namespace dfm::train
