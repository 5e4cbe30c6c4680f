#include "dfm/train/trainer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <optional>

#include "dfm/base/log.h"
#include "dfm/comm/launch.h"
#include "dfm/data/loader.h"
#include "dfm/formats/tensorboard.h"
#include "dfm/models/dit/dit.h"
#include "dfm/ops/device.h"
#include "dfm/train/metrics.h"
#include "dfm/train/optimizer.h"
#include "dfm/train/schedule.h"
#include "dfm/train/step.h"
#include "train/console.h"
#include "train/resume.h"
#include "train/run_checkpoint.h"
#include "train/signals.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kPlotPeriod = std::chrono::seconds(30);
constexpr std::int64_t kBadSamplesNamed = 10;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Precision resolve_precision(Precision wanted, at::Device device) {
  if (wanted != Precision::kAuto) return wanted;
  return device.is_cuda() ? Precision::kBf16Mixed : Precision::kFp32;
}

at::ScalarType compute_dtype(Precision precision) {
  if (precision == Precision::kFp64) return at::kDouble;
  return precision == Precision::kBf16Mixed ? at::kBFloat16 : at::kFloat;
}

data::LoaderOptions loader_options(const TrainConfig& config, std::int64_t consumed) {
  data::LoaderOptions options;
  options.seed = config.rng.seed;
  options.limits.max_tokens = config.dataset.task_encoder_seq_length;
  options.limits.max_samples = config.train.micro_batch_size.value_or(0);
  options.global_batch_size = config.train.global_batch_size;
  options.first_position = consumed;
  options.num_workers = config.dataset.num_workers;
  options.patch_spatial = config.model.patch_spatial;
  options.patch_temporal = config.model.patch_temporal;
  return options;
}

// The samples of the step whose part of the loss is not a number.
std::string bad_keys(const data::LoadedStep& step, const data::Dataset& dataset, const std::vector<RowLoss>& losses) {
  std::vector<std::string> keys;
  for (std::size_t r = 0; r < losses.size(); ++r) {
    const at::Tensor segments = losses[r].segments_N.to(at::kCPU, at::kDouble).contiguous();
    for (std::int64_t i = 0; i < segments.size(0); ++i) {
      if (std::isfinite(segments.const_data_ptr<double>()[i])) continue;
      const auto member = static_cast<std::size_t>(step.rows[r].members[static_cast<std::size_t>(i)]);
      keys.push_back(dataset.entries()[step.samples[member].index].key);
    }
  }
  constexpr std::size_t kMost = 8;
  const std::size_t more = keys.size() > kMost ? keys.size() - kMost : 0;
  keys.resize(keys.size() - more);
  return fmt::format("{}{}", fmt::join(keys, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

class Trainer {
 public:
  Trainer(const ResumePlan& plan, const RunContext& context, const std::optional<ExtraState>& stored,
          Clock::time_point start);
  Summary run();

 private:
  StepMetrics step(std::int64_t iteration);
  void report(const StepMetrics& metrics);
  void save();
  void plot();

  TrainConfig config_;
  const RunContext& context_;
  Clock::time_point start_, last_plot_;
  Precision precision_;
  std::shared_ptr<data::Dataset> dataset_;
  std::optional<models::Dit> model_;
  std::optional<Optimizer> optimizer_;
  std::optional<RowBuilder> rows_;
  std::optional<data::StepLoader> loader_;
  std::optional<MetricsFile> metrics_;
  std::optional<formats::EventWriter> events_;
  Console console_;
  Window window_;
  Summary summary_;
  std::int64_t consumed_samples_ = 0, bad_samples_ = 0, saved_iteration_ = -1;
  double peak_flops_ = 0;
};

Trainer::Trainer(const ResumePlan& plan, const RunContext& context, const std::optional<ExtraState>& stored,
                 Clock::time_point start)
    : config_(plan.config),
      context_(context),
      start_(start),
      last_plot_(start),
      precision_(resolve_precision(config_.mixed_precision, context.device)),
      dataset_(data::Dataset::open(config_.dataset.path)),
      console_(context.out) {
  follow_dataset(config_.model, dataset_->card(), dataset_->folder(), context);
  if (stored) check_same_run(*stored, config_, *dataset_, context, plan.from->path);
  consumed_samples_ = stored ? stored->consumed_samples : 0;
  // Starting to read before the model is made hides most of the first wait.
  loader_.emplace(dataset_, loader_options(config_, consumed_samples_));

  const at::ScalarType dtype = compute_dtype(precision_);
  model_.emplace(config_.model, dtype, context.device, config_.rng.seed);
  const fs::path& pretrained = config_.checkpoint.pretrained_checkpoint;
  if (!stored && !pretrained.empty())
    console_.say(fmt::format("Weights: {}", load_weights(pretrained, *model_).string()));
  optimizer_.emplace(model_->parameters(), config_.optimizer);
  if (stored) load_training_state(plan.from->path, *optimizer_);
  rows_.emplace(config_.model,
                StepSettings{config_.diffusion, config_.rng.seed, context.device, dtype, context.device.is_cuda()});

  summary_.iteration = stored ? stored->iteration : 0;
  summary_.run_folder = config_.checkpoint.save;
  if (plan.from && plan.from->path.parent_path() == config_.checkpoint.save) {
    saved_iteration_ = summary_.iteration;
    summary_.checkpoint = plan.from->path;
  }
  fs::create_directories(config_.checkpoint.save);
  metrics_.emplace(config_.checkpoint.save, summary_.iteration);
  const fs::path& tensorboard = config_.logger.tensorboard_dir;
  events_.emplace(tensorboard.empty() ? config_.checkpoint.save / "tb_logs" : tensorboard);
  peak_flops_ = peak_flops(ops::describe_device(context.device), precision_);
}

StepMetrics Trainer::step(std::int64_t iteration) {
  StepMetrics metrics;
  const auto begin = Clock::now();
  const data::LoadedStep loaded = loader_->next();
  metrics.data_wait_seconds = seconds_since(begin);
  metrics.iteration = iteration;
  metrics.learning_rate = learning_rate(config_.optimizer, config_.scheduler, config_.train.train_iters, iteration - 1);
  for (const data::LoadedSample& sample : loaded.samples) {
    if (sample.sample.problem.empty()) continue;
    if (++bad_samples_ <= kBadSamplesNamed)
      log::warning("train", "sample {}: {}; it weighs 0", dataset_->entries()[sample.index].key, sample.sample.problem);
  }
  metrics.bad_samples = loaded.num_bad;

  std::vector<RowLoss> losses;
  for (const data::Row& row : loaded.rows) {
    const TrainRow built = rows_->build(loaded, row);
    losses.push_back(forward_backward(*model_, built));
    optimizer_->accumulate();
    metrics.tokens += built.num_tokens;
    metrics.padded_tokens += built.x0_TC.size(0);
    metrics.flops += models::dit_flops(config_.model, built.token_lengths, built.text_lengths);
  }
  metrics.rows = static_cast<std::int64_t>(loaded.rows.size());
  consumed_samples_ += static_cast<std::int64_t>(loaded.samples.size());
  metrics.consumed_samples = consumed_samples_;

  if (metrics.tokens > 0) {
    double sum = 0;
    for (const RowLoss& loss : losses) sum += loss.sum.item<double>();
    metrics.loss = sum / static_cast<double>(metrics.tokens);
    if (!std::isfinite(sum)) {
      throw DataError(
          "loss of iteration {}: got {}, want a finite number (samples {}); hint: look at these samples, "
          "or continue from an earlier checkpoint with a smaller optimizer.lr",
          iteration, sum, bad_keys(loaded, *dataset_, losses));
    }
    metrics.grad_norm = optimizer_->step(metrics.learning_rate, static_cast<double>(metrics.tokens), iteration);
    if (!std::isfinite(metrics.grad_norm)) {
      throw DataError(
          "gradient norm of iteration {}: got {}, want a finite number (loss {:.6g}); hint: continue from "
          "an earlier checkpoint with a smaller optimizer.lr",
          iteration, metrics.grad_norm, metrics.loss);
    }
  } else {
    // Not one good sample: the step counts, nothing changes.
    metrics.loss = std::numeric_limits<double>::quiet_NaN();
  }
  metrics.seconds = seconds_since(begin);
  return metrics;
}

void Trainer::report(const StepMetrics& metrics) {
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
  ExtraState state;
  state.iteration = summary_.iteration;
  state.consumed_samples = consumed_samples_;
  state.seed = config_.rng.seed;
  state.dataset_num_samples = static_cast<std::int64_t>(dataset_->entries().size());
  state.dataset_fingerprint = dataset_->fingerprint();
  state.dataset_card = data::to_json(dataset_->card());
  state.model = config_.model;
  state.precision = precision_;
  summary_.checkpoint = save_checkpoint(config_, state, *model_, *optimizer_).path;
  saved_iteration_ = summary_.iteration;
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
                                              *dataset_, context_.device, precision_, summary_.iteration))
    console_.say(line);
  const StopSignals signals(context_.watch_signals);
  const auto begin = Clock::now();
  console_.start_bar(config_.train.train_iters, summary_.iteration);
  while (summary_.iteration < config_.train.train_iters && StopSignals::received() == 0) {
    const StepMetrics metrics = step(summary_.iteration + 1);
    ++summary_.iteration;
    ++summary_.steps;
    summary_.loss = metrics.loss;
    report(metrics);
    if (context_.on_step) context_.on_step(summary_.iteration, metrics.loss);
    const std::int64_t interval = config_.checkpoint.save_interval;
    if (interval > 0 && summary_.iteration % interval == 0) save();
  }
  console_.finish_bar();
  if (!window_.is_empty()) console_.say(window_.line(config_.train.train_iters, peak_flops_));
  if (summary_.steps > 0 || summary_.iteration > 0) save();
  events_->flush();
  summary_.seconds = seconds_since(begin);

  const int signal = StopSignals::received();
  if (signal != 0) {
    summary_.exit_code = signal == SIGINT ? ExitCode::kInterrupted : ExitCode::kTerminated;
    console_.say(fmt::format("Stopped by {} after iteration {}; the same command continues",
                             signal == SIGINT ? "SIGINT" : "SIGTERM", summary_.iteration));
    return summary_;
  }
  console_.say(fmt::format("Trained {} steps in {}, loss {:.6f}; memory: {}", summary_.steps,
                           format_duration(summary_.seconds), summary_.loss, describe_memory(context_.device)));
  console_.say(fmt::format("Loss curve: {}", (config_.checkpoint.save / "loss.svg").string()));
  if (bad_samples_ > 0) console_.say(fmt::format("Bad samples: {}, each weighed 0", bad_samples_));
  return summary_;
}

void refuse_several_ranks() {
  const comm::Launch launch = comm::read_launch();
  if (launch.world_size > 1) {
    throw CommError("world size: got {} ({}), want 1: this version trains on one rank; hint: start dfm train by itself",
                    launch.world_size, launch.launcher);
  }
}

}  // namespace

Summary run(const TrainConfig& config, const RunContext& context) {
  const auto start = Clock::now();
  refuse_several_ranks();
  const ResumePlan plan = plan_resume(config, context);
  Console console(context.out);
  for (const std::string& line : plan.lines) console.say(line);
  std::optional<ExtraState> stored;
  if (plan.from) {
    stored = read_extra_state(plan.from->path);
    if (stored->iteration >= plan.config.train.train_iters) {
      if (fs::is_directory(plan.config.dataset.path)) {  // another seed, shape or data set is not this run
        TrainConfig wanted = plan.config;
        const auto dataset = data::Dataset::open(wanted.dataset.path);
        follow_dataset(wanted.model, dataset->card(), dataset->folder(), context);
        check_same_run(*stored, wanted, *dataset, context, plan.from->path);
      }
      console.say(
          fmt::format("Already at iteration {} of train.train_iters={}: nothing to do; a larger "
                      "train.train_iters goes on",
                      stored->iteration, plan.config.train.train_iters));
      Summary summary;
      summary.iteration = stored->iteration;
      summary.run_folder = plan.config.checkpoint.save;
      summary.checkpoint = plan.from->path;
      return summary;
    }
  }
  if (plan.config.dataset.path.empty())
    throw ConfigError("dataset.path: got no value, want the folder that `dfm prepare` wrote; hint: --dataset-path DIR");
  return Trainer(plan, context, stored, start).run();
}

}  // namespace dfm::train
