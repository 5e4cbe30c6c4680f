#include "dfm/train/trainer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <optional>

#include "dfm/base/log.h"
#include "dfm/base/stop_signals.h"
#include "dfm/comm/world.h"
#include "dfm/config/tree.h"
#include "dfm/data/loader.h"
#include "dfm/formats/tensorboard.h"
#include "dfm/models/dit/dit.h"
#include "dfm/ops/device.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/train/metrics.h"
#include "dfm/train/schedule.h"
#include "dfm/train/step.h"
#include "train/checks.h"
#include "train/console.h"
#include "train/layout.h"
#include "train/resume.h"
#include "train/run_checkpoint.h"
#include "train/settings.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kPlotPeriod = std::chrono::seconds(30);
constexpr std::int64_t kBadSamplesNamed = 10;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Sums of a step over all ranks.
struct StepSums {
  double loss = 0, tokens = 0, padded_tokens = 0, rows = 0, bad_samples = 0, flops = 0, sigterm = 0, sigint = 0;
};

class Trainer {
 public:
  Trainer(const ResumePlan& plan, const RunContext& context, const std::optional<ExtraState>& stored,
          Clock::time_point start);
  Summary run();

 private:
  void load_state(const fs::path& from, const ExtraState& stored);
  StepMetrics step(std::int64_t iteration);
  std::vector<RowLoss> run_rows(const data::LoadedStep& loaded, StepSums& sums);
  void apply(const data::LoadedStep& loaded, StepMetrics& metrics);
  std::string rows_with_bad_gradients(const data::LoadedStep& loaded);
  void skip(StepMetrics& metrics, const std::string& what);
  void report(const StepMetrics& metrics);
  void save();
  void plot();
  void set_place(const char* what) { world_.set_place(fmt::format("iteration {}, {}", summary_.iteration + 1, what)); }

  TrainConfig config_;
  const RunContext& context_;
  comm::World& world_;
  Clock::time_point start_, last_plot_;
  Precision precision_;
  Layout layout_;
  std::optional<checkpoint::RunLock> lock_;
  std::shared_ptr<data::Dataset> dataset_;
  std::optional<models::Dit> model_;
  std::optional<parallel::DistributedOptimizer> optimizer_;
  std::optional<RowBuilder> rows_;
  std::optional<data::StepLoader> loader_;
  std::optional<MetricsFile> metrics_;  // of the first rank, as the events
  std::optional<formats::EventWriter> events_;
  Console console_;
  Window window_;
  Summary summary_;
  std::int64_t consumed_samples_ = 0, bad_samples_ = 0, all_bad_samples_ = 0, skipped_steps_ = 0, saved_iteration_ = -1;
  int stop_signal_ = 0;
  double peak_flops_ = 0;
};

// The first rank may have to write an index beside a foreign data set: the others open it afterwards.
std::shared_ptr<data::Dataset> open_dataset(const data::DatasetConfig& config, comm::World& world) {
  std::shared_ptr<data::Dataset> dataset;
  world.on_first([&] { dataset = data::Dataset::open(config); });
  return dataset ? dataset : data::Dataset::open(config);
}

Trainer::Trainer(const ResumePlan& plan, const RunContext& context, const std::optional<ExtraState>& stored,
                 Clock::time_point start)
    : config_(plan.config),
      context_(context),
      world_(*context.world),
      start_(start),
      last_plot_(start),
      precision_(resolve_precision(config_.mixed_precision, context.device)),
      layout_(make_layout(config_.model, world_)),
      console_(world_.is_first() ? context.out : nullptr) {
  world_.set_place("start");
  if (world_.is_first()) {
    for (const std::string& line : config_.model.options_without_effect()) log::warning("train", "{}", line);
  }
  const fs::path& folder = config_.checkpoint.save;
  world_.on_first([&] { lock_.emplace(folder); });
  dataset_ = open_dataset(config_.dataset, world_);
  world_.require_same(
      "data set", fmt::format("{} samples, fingerprint {:016x}", dataset_->entries().size(), dataset_->fingerprint()));
  follow_dataset(config_.model, dataset_->card(), dataset_->folder(), context);
  if (stored) check_same_run(*stored, config_, *dataset_, context, plan.from->path);

  // Starting to read before the model is made hides most of the first wait.
  consumed_samples_ = stored ? stored->consumed_samples : 0;
  loader_.emplace(dataset_, loader_options(config_, consumed_samples_, layout_, context.device));

  const at::ScalarType dtype = compute_dtype(precision_);
  model_.emplace(config_.model, dtype, context.device, config_.rng.seed, layout_.parallel);
  const fs::path& pretrained = config_.checkpoint.pretrained_checkpoint;
  if (!plan.from && !pretrained.empty())
    console_.say(fmt::format("Weights: {}", load_weights(pretrained, *model_).string()));
  optimizer_.emplace(model_->placed_parameters(), layout_.reduce, optimizer_settings(config_));
  model_->set_before_stage([this](int stage) { optimizer_->wait_for_parameters(stage); });
  if (stored) load_state(plan.from->path, *stored);
  rows_.emplace(config_.model, StepSettings{config_.diffusion, config_.rng.seed, context.device, dtype,
                                            context.device.is_cuda(), layout_.parallel});

  summary_.run_folder = folder;
  if (!world_.is_first()) return;
  metrics_.emplace(folder, summary_.iteration);
  const fs::path& tensorboard = config_.logger.tensorboard_dir;
  events_.emplace(tensorboard.empty() ? folder / "tb_logs" : tensorboard);
  peak_flops_ = peak_flops(ops::describe_device(context.device), precision_);
}

void Trainer::load_state(const fs::path& from, const ExtraState& stored) {
  const auto begin = Clock::now();
  load_training_state(from, *optimizer_, world_);
  summary_.iteration = stored.iteration;
  if (from.parent_path() == config_.checkpoint.save) {
    saved_iteration_ = stored.iteration;
    summary_.checkpoint = from;
  }
  console_.say(fmt::format("Loaded weights and optimizer state in {:.1f} s", seconds_since(begin)));
}

// Forward and backward of this rank's rows; what they add to the sums. With the last row gradients start to be reduced.
std::vector<RowLoss> Trainer::run_rows(const data::LoadedStep& loaded, StepSums& sums) {
  std::vector<RowLoss> losses;
  for (std::size_t i = 0; i < loaded.rows.size(); ++i) {
    const TrainRow built = rows_->build(loaded, loaded.rows[i]);
    if (i + 1 == loaded.rows.size()) optimizer_->begin_last_row();
    losses.push_back(forward_backward(*model_, built));
    if (!layout_.counts_rows()) continue;
    sums.rows += 1;
    sums.tokens += static_cast<double>(built.num_tokens);
    sums.padded_tokens += static_cast<double>(built.input.tokens.length);
    sums.flops += models::dit_flops(config_.model, built.token_lengths, built.text_lengths);
  }
  if (layout_.counts_loss()) {
    for (const RowLoss& loss : losses) sums.loss += loss.sum.item<double>();
  }
  return losses;
}

StepMetrics Trainer::step(std::int64_t iteration) {
  StepMetrics metrics;
  const auto begin = Clock::now();
  set_place("reading data");
  const data::LoadedStep loaded = loader_->next();
  metrics.data_wait_seconds = seconds_since(begin);
  metrics.iteration = iteration;
  metrics.learning_rate = learning_rate(config_.optimizer, config_.scheduler, config_.train.train_iters, iteration - 1);
  if (layout_.counts_rows()) {
    for (const data::LoadedSample& sample : loaded.samples) {
      if (sample.sample.problem.empty() || ++bad_samples_ > kBadSamplesNamed) continue;
      log::warning("train", "sample {}: {}; it weighs 0", dataset_->entries()[sample.index].key, sample.sample.problem);
    }
  }

  set_place("forward and backward");
  optimizer_->zero_gradients();
  StepSums sums;
  const std::vector<RowLoss> losses = run_rows(loaded, sums);
  set_place("reducing gradients");
  optimizer_->reduce_gradients();
  if (layout_.counts_rows()) sums.bad_samples = static_cast<double>(loaded.num_bad);
  sums.sigterm = StopSignals::received() == SIGTERM ? 1 : 0;
  sums.sigint = StopSignals::received() == SIGINT ? 1 : 0;
  sum_over_ranks(world_, context_.device, {&sums.loss, sizeof(sums) / sizeof(double)});

  metrics.rows = std::llround(sums.rows);
  metrics.tokens = std::llround(sums.tokens);
  metrics.padded_tokens = std::llround(sums.padded_tokens);
  metrics.bad_samples = std::llround(sums.bad_samples);
  all_bad_samples_ += metrics.bad_samples;
  metrics.flops = sums.flops;
  metrics.num_ranks = world_.size();
  consumed_samples_ += loaded.num_positions;
  metrics.consumed_samples = consumed_samples_;
  if (sums.sigterm + sums.sigint > 0) stop_signal_ = sums.sigterm > 0 ? SIGTERM : SIGINT;

  // Not one good sample: the step counts, nothing changes.
  metrics.loss = metrics.tokens > 0 ? sums.loss / sums.tokens : std::numeric_limits<double>::quiet_NaN();
  if (metrics.tokens > 0) {
    if (std::isfinite(sums.loss)) {
      apply(loaded, metrics);
    } else {
      const std::string keys = gather_by_rank(world_, keys_with_bad_loss(loaded, *dataset_, losses));
      if (!config_.train.skip_nonfinite_steps) {
        throw DataError(
            "loss of iteration {}: got {}, want a finite number (samples {}); hint: look at these samples, or continue "
            "from an earlier checkpoint with a smaller optimizer.lr, or set train.skip_nonfinite_steps=true",
            iteration, sums.loss, keys);
      }
      skip(metrics, fmt::format("loss {} (samples {})", sums.loss, keys));
    }
  }
  metrics.seconds = seconds_since(begin);
  return metrics;
}

// The optimizer's step; the gradients are reduced.
void Trainer::apply(const data::LoadedStep& loaded, StepMetrics& metrics) {
  set_place("optimizer");
  metrics.grad_norm = optimizer_->step(metrics.learning_rate, static_cast<double>(metrics.tokens), metrics.iteration);
  if (std::isfinite(metrics.grad_norm)) return;
  const std::string keys = gather_by_rank(world_, rows_with_bad_gradients(loaded));
  if (!config_.train.skip_nonfinite_steps) {
    throw DataError(
        "gradient norm of iteration {}: got {}, want a finite number (loss {:.6g}; rows with samples {}); hint: "
        "continue from an earlier checkpoint with a smaller optimizer.lr, or set train.skip_nonfinite_steps=true",
        metrics.iteration, metrics.grad_norm, metrics.loss, keys);
  }
  skip(metrics, fmt::format("gradient norm {} (rows with samples {})", metrics.grad_norm, keys));
}

// The step is done again row by row, which is the same, to see which row's gradient is not finite.
std::string Trainer::rows_with_bad_gradients(const data::LoadedStep& loaded) {
  std::string text;
  for (const data::Row& row : loaded.rows) {
    optimizer_->zero_gradients();
    forward_backward(*model_, rows_->build(loaded, row));
    if (optimizer_->has_finite_gradients()) continue;
    std::vector<std::string> keys;
    for (const std::int64_t member : row.members)
      keys.push_back(dataset_->entries()[loaded.samples[static_cast<std::size_t>(member)].index].key);
    text += (text.empty() ? "" : "; ") + first_few(std::move(keys));
  }
  return text;
}

void Trainer::skip(StepMetrics& metrics, const std::string& what) {
  metrics.loss = metrics.grad_norm = std::numeric_limits<double>::quiet_NaN();
  ++skipped_steps_;
  if (world_.is_first()) log::warning("train", "iteration {}: got {}; it changes nothing", metrics.iteration, what);
}

void Trainer::report(const StepMetrics& metrics) {
  if (!world_.is_first()) return;
  metrics_->append(metrics);
  if (std::isfinite(metrics.loss)) {
    events_->scalar("lm loss", metrics.iteration, metrics.loss);
    events_->scalar("grad-norm", metrics.iteration, metrics.grad_norm);
  }
  events_->scalar("learning-rate", metrics.iteration, metrics.learning_rate);
  events_->scalar("iteration-time", metrics.iteration, metrics.seconds);
  events_->scalar("tokens-per-second", metrics.iteration,
                  static_cast<double>(metrics.tokens) / std::max(metrics.seconds, 1e-9));
  window_.add(metrics);
  const bool is_last = metrics.iteration == config_.train.train_iters;
  if (metrics.iteration % config_.logger.log_interval == 0 || is_last) {
    console_.say(window_.line(config_.train.train_iters, peak_flops_));
    window_.clear();
    events_->flush();
    if (Clock::now() - last_plot_ > kPlotPeriod) plot();
  }
  if (summary_.steps == 1)
    console_.say(fmt::format("First step {:.1f} s after the start; memory: {}", seconds_since(start_),
                             describe_memory(context_.device)));
  console_.advance_bar(fmt::format("loss {:.4f}", metrics.loss));
}

void Trainer::save() {
  if (saved_iteration_ == summary_.iteration) return;
  const auto begin = Clock::now();
  world_.set_place(fmt::format("saving iteration {}", summary_.iteration));
  world_.on_first([&] { lock_->check_still_mine(); });
  ExtraState state;
  state.iteration = summary_.iteration;
  state.consumed_samples = consumed_samples_;
  state.seed = config_.rng.seed;
  state.dataset_num_samples = static_cast<std::int64_t>(dataset_->entries().size());
  state.dataset_fingerprint = dataset_->fingerprint();
  state.dataset_card = data::to_json(dataset_->card());
  state.model = config_.model;
  state.precision = precision_;
  summary_.checkpoint = save_checkpoint(config_, state, *model_, *optimizer_, world_).path;
  saved_iteration_ = summary_.iteration;
  if (!world_.is_first()) return;
  console_.say(fmt::format("Saved {} ({}, {:.1f} s)", summary_.checkpoint.string(),
                           format_bytes(folder_bytes(summary_.checkpoint)), seconds_since(begin)));
  plot();
}

void Trainer::plot() {
  last_plot_ = Clock::now();
  write_loss_plot(config_.checkpoint.save / "loss.svg", "Training loss, " + config_.checkpoint.save.filename().string(),
                  metrics_->losses());
}

Summary Trainer::run() {
  for (const std::string& line : describe_run(config_, summary_.iteration > 0 ? "" : context_.recipe, *model_,
                                              *dataset_, context_.device, precision_, layout_, summary_.iteration))
    console_.say(line);
  const StopSignals signals(context_.watch_signals,
                            "\n[train] stopping: this step is finished and saved; a second signal ends at once\n");
  // One rank acts on its own signal at once; several on what any of them had at the end of the step.
  const auto signal = [&] { return world_.size() == 1 ? StopSignals::received() : stop_signal_; };
  const auto begin = Clock::now();
  console_.start_bar(config_.train.train_iters, summary_.iteration);
  while (summary_.iteration < config_.train.train_iters && signal() == 0) {
    const StepMetrics metrics = step(summary_.iteration + 1);
    ++summary_.iteration;
    ++summary_.steps;
    summary_.loss = metrics.loss;
    report(metrics);
    const std::int64_t check_interval = config_.train.check_weight_hash_across_dp_replicas_interval;
    if (check_interval > 0 && summary_.iteration % check_interval == 0) {
      optimizer_->wait_for_parameters();
      check_equal_weights(*model_, layout_, world_, summary_.iteration);
    }
    if (context_.on_step) context_.on_step(summary_.iteration, metrics.loss);
    const std::int64_t interval = config_.checkpoint.save_interval;
    if (interval > 0 && summary_.iteration % interval == 0) save();
  }
  console_.finish_bar();
  if (!window_.is_empty()) console_.say(window_.line(config_.train.train_iters, peak_flops_));
  if (summary_.steps > 0 || summary_.iteration > 0) save();
  if (events_) events_->flush();
  summary_.seconds = seconds_since(begin);

  if (const int number = signal(); number != 0) {
    summary_.exit_code = number == SIGINT ? ExitCode::kInterrupted : ExitCode::kTerminated;
    console_.say(fmt::format("Stopped by {} after iteration {}; the same command continues",
                             number == SIGINT ? "SIGINT" : "SIGTERM", summary_.iteration));
    return summary_;
  }
  console_.say(fmt::format("Trained {} steps in {}, loss {:.6f}; memory: {}", summary_.steps,
                           format_duration(summary_.seconds), summary_.loss, describe_memory(context_.device)));
  console_.say(fmt::format("Loss curve: {}", (config_.checkpoint.save / "loss.svg").string()));
  if (all_bad_samples_ > 0) console_.say(fmt::format("Bad samples: {}, each weighed 0", all_bad_samples_));
  if (skipped_steps_ > 0)
    console_.say(fmt::format("Skipped steps: {}, whose loss or gradient was not finite", skipped_steps_));
  return summary_;
}

// Whether all that the run trained on is still where it was.
bool is_data_there(const data::DatasetConfig& config) {
  const auto exists = [](const fs::path& path) {
    std::error_code ignored;
    return fs::exists(path, ignored);
  };
  if (config.blend.empty()) return exists(config.path);
  const std::vector<data::BlendItem> items = data::parse_blend(config.blend);
  return std::all_of(items.begin(), items.end(), [&](const auto& item) { return exists(item.path); });
}

// Nothing to train: says so, after checking that the run in the folder is the one that is meant.
Summary report_finished(const ResumePlan& plan, const ExtraState& stored, const RunContext& context, Console& console) {
  comm::World& world = *context.world;
  // Another seed, shape or data set is not this run. The first rank's view of the file system decides for all.
  if (world.gather_text(is_data_there(plan.config.dataset) ? "yes" : "").at(0) == "yes") {
    TrainConfig wanted = plan.config;
    const auto dataset = open_dataset(wanted.dataset, world);
    follow_dataset(wanted.model, dataset->card(), dataset->folder(), context);
    check_same_run(stored, wanted, *dataset, context, plan.from->path);
  }
  console.say(
      fmt::format("Already at iteration {} of train.train_iters={}: nothing to do; a larger train.train_iters "
                  "goes on",
                  stored.iteration, plan.config.train.train_iters));
  Summary summary;
  summary.iteration = stored.iteration;
  summary.run_folder = plan.config.checkpoint.save;
  summary.checkpoint = plan.from->path;
  return summary;
}

}  // namespace

Summary run(const TrainConfig& config, const RunContext& context) {
  const auto start = Clock::now();
  comm::World& world = *context.world;
  comm::make_grid(world.size(), static_cast<int>(config.model.tensor_model_parallel_size),
                  static_cast<int>(config.model.context_parallel_size),
                  static_cast<int>(config.model.pipeline_model_parallel_size));
  const ResumePlan plan = plan_resume(config, context);
  world.require_same("configuration",
                     fmt::format("{}continues: {}\n", config::to_yaml(plan.config, config::YamlStyle::kFull),
                                 plan.from ? plan.from->path.string() : "nothing"));
  Console console(world.is_first() ? context.out : nullptr);
  for (const std::string& line : plan.lines) console.say(line);
  std::optional<ExtraState> stored;
  if (plan.from) {
    stored = read_extra_state(plan.from->path);
    if (stored->iteration >= plan.config.train.train_iters) return report_finished(plan, *stored, context, console);
  }
  if (plan.config.dataset.path.empty() && plan.config.dataset.blend.empty())
    throw ConfigError("dataset.path: got no value, want the folder that `dfm prepare` wrote; hint: --dataset-path DIR");
  return Trainer(plan, context, stored, start).run();
}

}  // namespace dfm::train
