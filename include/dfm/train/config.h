#pragma once
// The configuration of `dfm train`: sections and option names of Megatron-Bridge, values merged as recipe -> YAML files
// -> command line.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "dfm/checkpoint/config.h"
#include "dfm/comm/config.h"
#include "dfm/config/schema.h"
#include "dfm/data/config.h"
#include "dfm/diffusion/edm.h"
#include "dfm/models/dit/dit_config.h"

namespace dfm::train {

enum class Precision { kAuto, kFp32, kBf16Mixed, kFp64 };
constexpr auto enum_names(Precision) {
  return std::array{std::pair{Precision::kAuto, "auto"}, std::pair{Precision::kFp32, "fp32"},
                    std::pair{Precision::kBf16Mixed, "bf16_mixed"}, std::pair{Precision::kFp64, "fp64"}};
}

enum class LrDecay { kConstant, kCosine };
constexpr auto enum_names(LrDecay) {
  return std::array{std::pair{LrDecay::kConstant, "constant"}, std::pair{LrDecay::kCosine, "cosine"}};
}

struct RngConfig {
  std::uint64_t seed = 1234;
  static constexpr auto fields() {
    return config::fields<RngConfig>(config::field(
        "seed", &RngConfig::seed, "Key of everything random: weights, order, noise, sigma, text dropout"));
  }
};

struct LoopConfig {
  std::int64_t train_iters = 10000;
  std::int64_t global_batch_size = 128;
  std::optional<std::int64_t> micro_batch_size;
  std::int64_t check_weight_hash_across_dp_replicas_interval = 0;
  bool skip_nonfinite_steps = false;
  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<LoopConfig>(
        field("train_iters", &LoopConfig::train_iters, "Steps to train in all", positive),
        field("global_batch_size", &LoopConfig::global_batch_size, "Samples a step", positive),
        field("micro_batch_size", &LoopConfig::micro_batch_size, "Most samples in a packed row; null: as many as fit",
              positive),
        field("check_weight_hash_across_dp_replicas_interval",
              &LoopConfig::check_weight_hash_across_dp_replicas_interval,
              "Steps between checks that every copy of a parameter has the same bits on all ranks; 0: never",
              config::non_negative),
        field(
            "skip_nonfinite_steps", &LoopConfig::skip_nonfinite_steps,
            "A step whose loss or gradient is not finite changes nothing and the run goes on; false: it ends the run"));
  }
};

// How gradients and optimizer state are spread over the data and context ranks (names of Megatron-Bridge).
struct DdpConfig {
  bool use_distributed_optimizer = true;
  bool overlap_grad_reduce = true;
  bool overlap_param_gather = true;
  std::optional<std::int64_t> bucket_size;
  static constexpr auto fields() {
    using config::field;
    return config::fields<DdpConfig>(
        field("use_distributed_optimizer", &DdpConfig::use_distributed_optimizer,
              "Each rank holds its share of master weights and moments (ZeRO-1); false: all of them"),
        field("overlap_grad_reduce", &DdpConfig::overlap_grad_reduce, "Reduce gradients while backward runs"),
        field("overlap_param_gather", &DdpConfig::overlap_param_gather,
              "Gather new parameters while the next forward runs"),
        field("bucket_size", &DdpConfig::bucket_size,
              "Parameters a reduction; null: 40 million, or 1 million a rank if that is more", config::positive));
  }
};

struct OptimizerConfig {
  double lr = 0.9e-4;
  double min_lr = 0.9e-5;
  double weight_decay = 0.033;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.95;
  double adam_eps = 1e-5;
  double clip_grad = 1.0;
  static constexpr auto fields() {
    using config::field, config::non_negative, config::positive, config::unit_interval;
    return config::fields<OptimizerConfig>(
        field("lr", &OptimizerConfig::lr, "Peak learning rate", non_negative),
        field("min_lr", &OptimizerConfig::min_lr, "Learning rate at the end of the decay", non_negative),
        field("weight_decay", &OptimizerConfig::weight_decay, "Decoupled weight decay; not on 1-D parameters",
              non_negative),
        field("adam_beta1", &OptimizerConfig::adam_beta1, "AdamW: decay of the first moment", unit_interval),
        field("adam_beta2", &OptimizerConfig::adam_beta2, "AdamW: decay of the second moment", unit_interval),
        field("adam_eps", &OptimizerConfig::adam_eps, "AdamW: added to the root of the second moment", positive),
        field("clip_grad", &OptimizerConfig::clip_grad, "Largest gradient norm; 0: no clipping", non_negative));
  }
};

struct SchedulerConfig {
  LrDecay lr_decay_style = LrDecay::kCosine;
  std::optional<std::int64_t> lr_decay_iters;
  std::int64_t lr_warmup_iters = 2000;
  double lr_warmup_init = 0.0;
  static constexpr auto fields() {
    using config::field, config::non_negative, config::positive;
    return config::fields<SchedulerConfig>(
        field("lr_decay_style", &SchedulerConfig::lr_decay_style,
              "After the warm-up: constant, or cosine down to min_lr"),
        field("lr_decay_iters", &SchedulerConfig::lr_decay_iters, "Step at which min_lr is reached; null: train_iters",
              positive),
        field("lr_warmup_iters", &SchedulerConfig::lr_warmup_iters, "Steps of linear warm-up", non_negative),
        field("lr_warmup_init", &SchedulerConfig::lr_warmup_init, "Learning rate before the first step", non_negative));
  }
};

struct LoggerConfig {
  std::int64_t log_interval = 10;
  std::filesystem::path tensorboard_dir;
  static constexpr auto fields() {
    using config::field;
    return config::fields<LoggerConfig>(
        field("log_interval", &LoggerConfig::log_interval, "Steps between console lines", config::positive),
        field("tensorboard_dir", &LoggerConfig::tensorboard_dir,
              "Folder of TensorBoard events; empty: tb_logs in the run folder"));
  }
};

struct TrainConfig {
  models::DitConfig model;
  diffusion::DiffusionConfig diffusion;
  LoopConfig train;
  OptimizerConfig optimizer;
  DdpConfig ddp;
  SchedulerConfig scheduler;
  data::DatasetConfig dataset;
  checkpoint::CheckpointConfig checkpoint;
  LoggerConfig logger;
  RngConfig rng;
  comm::DistConfig dist;
  Precision mixed_precision = Precision::kAuto;

  static constexpr auto fields() {
    using config::field;
    return config::fields<TrainConfig>(
        field("model", &TrainConfig::model, "The DiT"), field("diffusion", &TrainConfig::diffusion, "EDM training"),
        field("train", &TrainConfig::train, "The loop"), field("optimizer", &TrainConfig::optimizer, "AdamW"),
        field("ddp", &TrainConfig::ddp, "Gradients and optimizer state over ranks"),
        field("scheduler", &TrainConfig::scheduler, "Learning rate"),
        field("dataset", &TrainConfig::dataset, "Training data"),
        field("checkpoint", &TrainConfig::checkpoint, "Checkpoints and the run folder"),
        field("logger", &TrainConfig::logger, "Console and TensorBoard"),
        field("rng", &TrainConfig::rng, "Random numbers"), field("dist", &TrainConfig::dist, "Ranks"),
        field(
            "mixed_precision", &TrainConfig::mixed_precision,
            "fp32, bf16_mixed (bf16 compute, fp32 master weights) or fp64; auto: bf16_mixed on a GPU, fp32 on a CPU"));
  }
  void check(config::Problems& problems) const;
};

}  // namespace dfm::train
