#include "dfm/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace dfm::train {
namespace {

OptimizerConfig rates(double lr, double min_lr) {
  OptimizerConfig optimizer;
  optimizer.lr = lr;
  optimizer.min_lr = min_lr;
  return optimizer;
}

TEST(LearningRate, WarmsUpFromTheFirstStepAsMegatronDoes) {
  SchedulerConfig scheduler;
  scheduler.lr_warmup_iters = 4;
  scheduler.lr_warmup_init = 1e-5;
  const OptimizerConfig optimizer = rates(1e-3, 0);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 100, 0), 1e-5);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 100, 1), 1e-5 + (1e-3 - 1e-5) / 4);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 100, 4), 1e-3);
  EXPECT_LT(learning_rate(optimizer, scheduler, 100, 5), 1e-3);
}

TEST(LearningRate, FollowsTheCosineToMinLr) {
  SchedulerConfig scheduler;
  scheduler.lr_warmup_iters = 10;
  const OptimizerConfig optimizer = rates(2e-3, 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 60), (2e-3 + 2e-4) / 2);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 35), 2e-4 + 1.8e-3 * 0.5 * (1 + std::cos(M_PI / 4)));
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 110), 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 5000), 2e-4);
  scheduler.lr_decay_iters = 60;
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 60), 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 110, 35), (2e-3 + 2e-4) / 2);
}

TEST(LearningRate, StaysConstantWhenAsked) {
  SchedulerConfig scheduler;
  scheduler.lr_decay_style = LrDecay::kConstant;
  scheduler.lr_warmup_iters = 0;
  const OptimizerConfig optimizer = rates(1e-3, 1e-5);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 10, 0), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 10, 1000), 1e-3);
}

TEST(LearningRate, EndsOnTheWayUpWhenTheRunIsShorterThanItsWarmup) {
  SchedulerConfig scheduler;
  scheduler.lr_warmup_iters = 2000;
  const OptimizerConfig optimizer = rates(1e-3, 1e-5);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 200, 199), 1e-3 * 199 / 2000);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer, scheduler, 200, 2500), 1e-5);
}

}  // namespace
}  // namespace dfm::train
