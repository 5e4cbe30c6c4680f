#include "dfm/train/dry_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "dfm/base/progress.h"
#include "dfm/comm/grid.h"
#include "dfm/data/loader.h"
#include "dfm/data/plan.h"
#include "dfm/models/dit/dit.h"

namespace dfm::train {
namespace {

// What autograd keeps of a layer for backward, in values a token: multiples of the width.
struct KeptWidths {
  // Split over tensor ranks: qkv 3, normalised q and k 2, attention 1, cross q 2, attention 1, fc1 4, GELU 4.
  double split = 17;
  // Whole on each (unless tokens are split too): three residual streams, three normalised inputs, three branches.
  double whole = 9;
};

KeptWidths kept_widths(models::Recompute recompute) {
  KeptWidths kept;
  if (recompute == models::Recompute::kSelective) kept = {.split = 17 - 4, .whole = 9 - 3};
  return kept;
}

// The rows of a step.
struct RowPlan {
  std::int64_t longest = 0;      // tokens, padding included
  std::int64_t most = 0;         // rows of a data rank
  double travelling_tokens = 0;  // of all rows of the data rank with most of them, see below
};

std::int64_t rounded(double value) { return static_cast<std::int64_t>(value + 0.5); }

// What one rank of a ring of `size` sends for `bytes` whole bytes: a gather or a reduce-scatter; twice that is an
// all-reduce.
double ring_bytes(double bytes, int size) { return bytes * (size - 1) / size; }

std::int64_t activation_bytes(const TrainConfig& config, const comm::GridSizes& sizes, std::int64_t row_tokens,
                              double value_bytes) {
  const KeptWidths kept = kept_widths(config.model.recompute_granularity);
  const double tensor = sizes.tensor;
  const double whole = kept.whole / (config.model.sequence_parallel ? tensor : 1);
  const double stream = 1 / (config.model.sequence_parallel ? tensor : 1);
  const double per_layer = kept.split / tensor + whole;
  const auto layers = static_cast<double>(config.model.num_layers);
  const double widths =
      config.model.recompute_granularity == models::Recompute::kFull ? layers * stream + per_layer : layers * per_layer;
  const double tokens = static_cast<double>(row_tokens) / sizes.context;
  return rounded(widths * tokens * static_cast<double>(config.model.hidden_size) * value_bytes);
}

double num_forwards(const TrainConfig& config) {
  return config.model.recompute_granularity == models::Recompute::kFull ? 2 : 1;
}

// Of one row: three pairs of regions a layer. A pair is an all-reduce in forward and one in backward; with sequence
// parallelism a gather and a reduce-scatter each, the same bytes, and in backward one gather more, of tokens that were
// not kept. Recompute runs the forward again.
double tensor_bytes(const TrainConfig& config, const comm::GridSizes& sizes, std::int64_t row_tokens,
                    double value_bytes) {
  if (sizes.tensor == 1) return 0;
  const double activation =
      static_cast<double>(row_tokens) / sizes.context * static_cast<double>(config.model.hidden_size) * value_bytes;
  const double parts = 2 * num_forwards(config) + (config.model.sequence_parallel ? 3 : 2);
  return static_cast<double>(config.model.num_layers) * 3 * parts * ring_bytes(activation, sizes.tensor);
}

// Under p2p, in tokens of keys (and as many of values) a layer: what the busiest context rank sends of one row. In each
// forward, and again in backward, its own tokens of the segment that it shares with each other rank; then the gradients
// of theirs, in the same dtype.
double travelling_tokens(const std::vector<std::int64_t>& lengths, std::int64_t row_tokens, double forwards,
                         int num_contexts) {
  const std::int64_t part = row_tokens / num_contexts;
  std::vector<double> sent(static_cast<std::size_t>(num_contexts));
  std::int64_t begin = 0;
  for (const std::int64_t length : lengths) {
    const std::int64_t end = begin + length;
    const auto held = [&](std::int64_t rank) {
      return static_cast<double>(std::min(end, (rank + 1) * part) - std::max(begin, rank * part));
    };
    const std::int64_t first = begin / part, last = (end - 1) / part;
    for (std::int64_t rank = first; rank <= last; ++rank) {
      const double mine = held(rank), theirs = static_cast<double>(length) - mine;
      sent[static_cast<std::size_t>(rank)] += static_cast<double>(last - first) * mine * (forwards + 1) + theirs;
    }
    begin = end;
  }
  return *std::max_element(sent.begin(), sent.end());
}

// Of all rows of a step on one data rank. All-to-all: four tensors each way.
double context_bytes(const TrainConfig& config, const comm::GridSizes& sizes, const RowPlan& rows, double value_bytes) {
  if (sizes.context == 1) return 0;
  const double width = static_cast<double>(config.model.hidden_size) / sizes.tensor;
  const double layers = static_cast<double>(config.model.num_layers);
  if (config.model.cp_comm_type == parallel::ContextComm::kP2p)
    return layers * 2 * rows.travelling_tokens * width * value_bytes;
  const double part = static_cast<double>(rows.longest) / sizes.context * width;
  return static_cast<double>(rows.most) * layers * (num_forwards(config) + 1) * 4 *
         ring_bytes(part * value_bytes, sizes.context);
}

RowPlan plan_rows(const TrainConfig& config, const comm::GridSizes& sizes,
                  const std::vector<std::int64_t>& token_lengths) {
  data::PackLimits limits;
  limits.max_tokens = config.dataset.task_encoder_seq_length;
  limits.max_samples = config.train.micro_batch_size.value_or(0);
  limits.token_multiple *= std::int64_t{sizes.tensor} * sizes.context;
  const double forwards = num_forwards(config);
  RowPlan plan;
  if (token_lengths.empty()) {  // one sample that fills a row
    plan.longest = data::row_lengths(limits).back();
    plan.most = 1;
    plan.travelling_tokens = travelling_tokens({plan.longest}, plan.longest, forwards, sizes.context);
    return plan;
  }
  const data::PackCost cost{.per_token = 7 * static_cast<double>(config.model.hidden_size), .per_pair = 1};
  for (const std::vector<data::Row>& rows : data::plan_step(token_lengths, limits, sizes.data, cost)) {
    plan.most = std::max(plan.most, static_cast<std::int64_t>(rows.size()));
    double travelling = 0;
    for (const data::Row& row : rows) {
      plan.longest = std::max(plan.longest, row.padded_tokens);
      std::vector<std::int64_t> lengths;
      for (const std::int64_t member : row.members) lengths.push_back(token_lengths[static_cast<std::size_t>(member)]);
      travelling += travelling_tokens(lengths, row.padded_tokens, forwards, sizes.context);
    }
    plan.travelling_tokens = std::max(plan.travelling_tokens, travelling);
  }
  return plan;
}

void describe(DryRun& run, const TrainConfig& config, const comm::GridSizes& sizes, bool bf16, bool has_lengths) {
  const auto size = [](std::int64_t bytes) { return format_bytes(static_cast<std::uint64_t>(bytes)); };
  const auto millions = [](std::int64_t count) { return fmt::format("{:.2f} M", static_cast<double>(count) * 1e-6); };
  run.lines = {
      fmt::format("Layout: {} ({} ranks{})", comm::describe(sizes), sizes.world(),
                  config.model.sequence_parallel && sizes.tensor > 1 ? ", sequence parallel" : ""),
      fmt::format("Parameters: {}; {} on a rank", millions(run.parameters), millions(run.rank_parameters)),
      fmt::format("Rows: up to {} a step on a data rank, up to {} tokens each{}", run.rank_rows, run.row_tokens,
                  has_lengths ? ", in the first step" : " (no data set to plan with: one full row is assumed)"),
      fmt::format("Memory of a rank, {}:", bf16 ? "bf16_mixed" : "fp32"),
      fmt::format("  weights            {:>10}", size(run.memory.weights)),
      fmt::format("  gradients          {:>10}", size(run.memory.gradients)),
      fmt::format("  optimizer state    {:>10}{}", size(run.memory.optimizer),
                  config.ddp.use_distributed_optimizer ? "" : "  (ddp.use_distributed_optimizer=true shares it)"),
      fmt::format("  activations        {:>10}  (recompute {})", size(run.memory.activations),
                  config::enum_name(config.model.recompute_granularity)),
      fmt::format("  in all             {:>10}  and the libraries' own", size(run.memory.total())),
      "Bytes that a rank sends in a step:",
      fmt::format("  tensor parallel    {:>10}", size(run.communication.tensor)),
      fmt::format("  context parallel   {:>10}{}", size(run.communication.context),
                  sizes.context > 1 ? fmt::format("  ({})", config::enum_name(config.model.cp_comm_type)) : ""),
      fmt::format("  gradients          {:>10}", size(run.communication.gradients)),
      fmt::format("  parameters         {:>10}", size(run.communication.parameters)),
  };
}

}  // namespace

DryRun dry_run(const TrainConfig& config, int world_size, bool bf16, const std::vector<std::int64_t>& token_lengths) {
  const models::DitConfig& model = config.model;
  const comm::GridSizes sizes = comm::make_grid(world_size, static_cast<int>(model.tensor_model_parallel_size),
                                                static_cast<int>(model.context_parallel_size),
                                                static_cast<int>(model.pipeline_model_parallel_size));
  const models::DitParameterCounts counts = models::dit_parameter_counts(model);
  DryRun run;
  run.parameters = counts.split + counts.replicated;
  const double split = static_cast<double>(counts.split) / sizes.tensor;
  const auto replicated = static_cast<double>(counts.replicated);
  run.rank_parameters = rounded(split + replicated);
  const RowPlan plan = plan_rows(config, sizes, token_lengths);
  run.row_tokens = plan.longest;
  run.rank_rows = plan.most;

  const double value_bytes = bf16 ? 2 : 4;
  const int data_context = sizes.data * sizes.context, replicas = data_context * sizes.tensor;
  const bool shares = config.ddp.use_distributed_optimizer;
  run.memory.weights = rounded((split + replicated) * value_bytes);
  run.memory.gradients = rounded((split + replicated) * 4);
  // Moments, and masters where the weights are not the masters themselves.
  run.memory.optimizer =
      rounded((split / (shares ? data_context : 1) + replicated / (shares ? replicas : 1)) * (bf16 ? 12 : 8));
  run.memory.activations = activation_bytes(config, sizes, run.row_tokens, value_bytes);

  const auto rows = static_cast<double>(run.rank_rows);
  run.communication.tensor = rounded(rows * tensor_bytes(config, sizes, run.row_tokens, value_bytes));
  run.communication.context = rounded(context_bytes(config, sizes, plan, value_bytes));
  const double gathered = ring_bytes(split, data_context) + ring_bytes(replicated, replicas);
  run.communication.gradients = rounded(gathered * 4 * (shares ? 1 : 2));
  run.communication.parameters = shares ? rounded(gathered * value_bytes) : 0;
  describe(run, config, sizes, bf16, !token_lengths.empty());
  return run;
}

std::vector<std::int64_t> follow_dataset_for_dry_run(TrainConfig& config) {
  if (config.dataset.path.empty() && config.dataset.blend.empty()) return {};
  const auto dataset = data::Dataset::open(config.dataset);
  config.model.crossattn_emb_size = dataset->card().text_width;
  config.model.in_channels = dataset->card().latent_channels;
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < config.train.global_batch_size; ++i) {
    const auto at = dataset->index_at(config.rng.seed, static_cast<std::uint64_t>(i));
    lengths.push_back(
        data::num_tokens(dataset->entries()[at], config.model.patch_spatial, config.model.patch_temporal));
  }
  return lengths;
}

}  // namespace dfm::train
