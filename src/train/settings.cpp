#include "train/settings.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dfm::train {
namespace {

constexpr std::int64_t kTokenMultiple = 128;  // of a rank's part of a row: what kernels like

}  // namespace

Precision resolve_precision(Precision wanted, at::Device device) {
  if (wanted != Precision::kAuto) return wanted;
  return device.is_cuda() ? Precision::kBf16Mixed : Precision::kFp32;
}

at::ScalarType compute_dtype(Precision precision) {
  if (precision == Precision::kFp64) return at::kDouble;
  return precision == Precision::kBf16Mixed ? at::kBFloat16 : at::kFloat;
}

data::LoaderOptions loader_options(const TrainConfig& config, std::int64_t consumed, const Layout& layout,
                                   at::Device device) {
  data::LoaderOptions options;
  options.seed = config.rng.seed;
  options.limits.max_tokens = config.dataset.task_encoder_seq_length;
  options.limits.token_multiple = kTokenMultiple * layout.sizes.tensor * layout.sizes.context;
  options.data_rank = layout.at.data;
  options.num_data_ranks = layout.sizes.data;
  // Multiply-adds of a layer: 14 n D^2 + 2 n^2 D (models::dit_flops).
  options.cost = {.per_token = 7 * static_cast<double>(config.model.hidden_size), .per_pair = 1};
  if (!layout.model->is_alone()) {
    options.agree = [group = layout.model, device](std::vector<std::int64_t>& is_bad) {
      const at::Tensor flags = at::tensor(is_bad, at::kLong).to(device);
      group->all_reduce(flags, comm::Reduce::kMax).wait();
      const at::Tensor host = flags.to(at::kCPU);
      std::copy_n(host.const_data_ptr<std::int64_t>(), is_bad.size(), is_bad.begin());
    };
  }
  options.limits.max_samples = config.train.micro_batch_size.value_or(0);
  options.global_batch_size = config.train.global_batch_size;
  options.first_position = consumed;
  options.num_workers = config.dataset.num_workers;
  options.patch_spatial = config.model.patch_spatial;
  options.patch_temporal = config.model.patch_temporal;
  return options;
}

parallel::OptimizerSettings optimizer_settings(const TrainConfig& config) {
  return {.weight_decay = config.optimizer.weight_decay,
          .beta1 = config.optimizer.adam_beta1,
          .beta2 = config.optimizer.adam_beta2,
          .eps = config.optimizer.adam_eps,
          .clip_grad = config.optimizer.clip_grad,
          .use_distributed_optimizer = config.ddp.use_distributed_optimizer,
          .overlap_grad_reduce = config.ddp.overlap_grad_reduce,
          .overlap_param_gather = config.ddp.overlap_param_gather,
          .bucket_size = config.ddp.bucket_size.value_or(0)};
}

}  // namespace dfm::train
