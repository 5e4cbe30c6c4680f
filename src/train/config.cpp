#include "dfm/train/config.h"

#include <fmt/format.h>

namespace dfm::train {

void TrainConfig::check(config::Problems& problems) const {
  if (optimizer.min_lr > optimizer.lr) {
    problems.push_back({"optimizer.min_lr", fmt::format("{}", optimizer.min_lr),
                        fmt::format("at most optimizer.lr = {}", optimizer.lr), "set optimizer.min_lr=0"});
  }
  if (scheduler.lr_warmup_init > optimizer.lr) {
    problems.push_back({"scheduler.lr_warmup_init", fmt::format("{}", scheduler.lr_warmup_init),
                        fmt::format("at most optimizer.lr = {}", optimizer.lr), ""});
  }
  for (const auto& [name, beta] :
       {std::pair{"optimizer.adam_beta1", optimizer.adam_beta1}, {"optimizer.adam_beta2", optimizer.adam_beta2}}) {
    if (beta == 1.0) problems.push_back({name, "1", "a value below 1", ""});
  }
  if (checkpoint.most_recent_k == 0 || checkpoint.most_recent_k < -1) {
    problems.push_back(
        {"checkpoint.most_recent_k", fmt::format("{}", checkpoint.most_recent_k), "-1 (keep all) or a value > 0", ""});
  }
  if (checkpoint.save.empty()) problems.push_back({"checkpoint.save", "''", "the path of a run folder", ""});
}

}  // namespace dfm::train
