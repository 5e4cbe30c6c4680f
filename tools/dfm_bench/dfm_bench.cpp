// dfm_bench step [--layers 4 --hidden 192 ...]: times training steps of a DiT on invented samples, half of them
// pictures and half clips, with the code that `dfm train` runs. The defaults are the demo's model. One JSON object on
// stdout. peer_step.py times the same model in PyTorch; `compare` runs both in turn.
// dfm_bench cosmos: the Cosmos tokenizer; peer_cosmos.py times diffusers'.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <vector>

#include "cosmos.h"
#include "dfm/base/error.h"
#include "dfm/data/loader.h"
#include "dfm/models/dit/dit.h"
#include "dfm/ops/device.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/train/step.h"
#include "t5.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::int64_t layers = 4, hidden = 192, heads = 6, text_width = 1024;
  std::int64_t samples = 8, side = 12, frames = 3;  // of the latent: 36 tokens a picture, 108 a clip
  std::int64_t warmup = 3, steps = 20;
  int threads = 0;
  std::string device = "cpu", precision = "fp32";
  bool recompute = false;
};

dfm::models::DitConfig model_config(const Options& options) {
  dfm::models::DitConfig config;
  config.num_layers = options.layers;
  config.hidden_size = options.hidden;
  config.num_attention_heads = options.heads;
  config.crossattn_emb_size = options.text_width;
  if (options.recompute) config.recompute_granularity = dfm::models::Recompute::kFull;
  return config;
}

at::ScalarType compute_dtype(const Options& options) {
  if (options.precision == "fp32") return at::kFloat;
  if (options.precision == "bf16") return at::kBFloat16;
  throw dfm::ConfigError("--precision: got {}, want fp32 or bf16", options.precision);
}

// Text rows of the samples: captions as the demo's, one dropped. peer_step.py has the same list.
constexpr std::int64_t kTextLengths[] = {12, 9, 14, 0, 11, 8, 13, 10};

// A step as the loader gives it: one row, clips before pictures.
dfm::data::LoadedStep make_step(const Options& options, std::int64_t first_position) {
  dfm::data::LoadedStep step;
  step.first_position = first_position;
  dfm::data::Row row;
  for (std::int64_t i = 0; i < options.samples; ++i) {
    const std::int64_t frames = i < options.samples / 2 ? options.frames : 1;
    dfm::data::LoadedSample loaded;
    loaded.position = first_position + i;
    loaded.sample.latent_CTHW = at::randn({16, frames, options.side, options.side}).to(at::kBFloat16);
    loaded.sample.text_LE = at::randn({kTextLengths[i % 8], options.text_width}).to(at::kBFloat16);
    step.samples.push_back(std::move(loaded));
    row.members.push_back(i);
    row.num_tokens += frames * options.side * options.side / 4;
  }
  row.padded_tokens = (row.num_tokens + 127) / 128 * 128;
  step.rows.push_back(row);
  return step;
}

// Work on a GPU goes on after the call: reading a value waits for it.
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int run_step(const Options& options) {
  const at::Device device = dfm::ops::select_device(options.device, 0);
  dfm::ops::set_num_threads(options.threads);
  const dfm::models::DitConfig config = model_config(options);
  const at::ScalarType dtype = compute_dtype(options);
  const dfm::models::Dit model(config, dtype, device, 1234);
  dfm::parallel::DistributedOptimizer optimizer(model.placed_parameters(), {},
                                                {.weight_decay = 0.033, .eps = 1e-5, .clip_grad = 1.0});
  dfm::diffusion::DiffusionConfig diffusion;
  diffusion.text_dropout = 0;  // the list of lengths has a dropped one: each step is the same work
  dfm::train::RowBuilder builder(
      config, {.diffusion = diffusion, .device = device, .compute_dtype = dtype, .has_padding = device.is_cuda()});
  std::vector<double> total, built, ran, updated;
  double loss = 0;
  for (std::int64_t i = 0; i < options.warmup + options.steps; ++i) {
    const dfm::data::LoadedStep step = make_step(options, i * options.samples);
    const auto start = Clock::now();
    const dfm::train::TrainRow row = builder.build(step, step.rows.front());
    const double built_at = seconds_since(start);
    const dfm::train::RowLoss row_loss = dfm::train::forward_backward(model, row);
    if (device.is_cuda()) loss = row_loss.sum.item<double>();
    const double ran_at = seconds_since(start);
    optimizer.reduce_gradients();
    optimizer.step(1e-4, static_cast<double>(row.num_tokens), i + 1);
    optimizer.zero_gradients();
    loss = row_loss.sum.item<double>() / static_cast<double>(row.num_tokens);
    const double end = seconds_since(start);
    if (i < options.warmup) continue;
    total.push_back(end);
    built.push_back(built_at);
    ran.push_back(ran_at - built_at);
    updated.push_back(end - ran_at);
  }
  const auto median_ms = [](std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle * 1e3;
  };
  const double fastest_ms = *std::min_element(total.begin(), total.end()) * 1e3;
  fmt::print(
      "{{\"name\": \"dfm\", \"device\": \"{}\", \"precision\": \"{}\", \"step_ms\": {:.3f}, \"fastest_ms\": {:.3f}, "
      "\"row_ms\": {:.3f}, \"forward_backward_ms\": {:.3f}, \"optimizer_ms\": {:.3f}, \"loss\": {:.6f}}}\n",
      dfm::ops::describe_device(device), options.precision, median_ms(total), fastest_ms, median_ms(built),
      median_ms(ran), median_ms(updated), loss);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Times of dfm's own code; peers beside it"};
  app.require_subcommand(1);
  CLI::App* step = app.add_subcommand("step", "A training step: forward, loss, backward, clipping, AdamW");
  step->add_option("--layers", options.layers, "Layers");
  step->add_option("--hidden", options.hidden, "Width");
  step->add_option("--heads", options.heads, "Attention heads");
  step->add_option("--text-width", options.text_width, "Width of the text rows");
  step->add_option("--samples", options.samples, "Samples a step: half clips, half pictures")
      ->check(CLI::PositiveNumber);
  step->add_option("--side", options.side, "Latent height and width, even");
  step->add_option("--frames", options.frames, "Latent frames of a clip");
  step->add_option("--warmup", options.warmup, "Steps before the clock starts");
  step->add_option("--steps", options.steps, "Steps that are timed")->check(CLI::PositiveNumber);
  step->add_option("--threads", options.threads, "CPU threads; 0: all");
  step->add_option("--device", options.device, "auto, cpu or cuda");
  step->add_option("--precision", options.precision, "fp32 or bf16");
  step->add_flag("--recompute", options.recompute, "Recompute activations of each layer");
  dfm::bench::CosmosBench cosmos_options;
  const CLI::App* cosmos = dfm::bench::add_cosmos(app, cosmos_options);
  dfm::bench::T5Bench t5_options;
  const CLI::App* t5 = dfm::bench::add_t5(app, t5_options);
  CLI11_PARSE(app, argc, argv);
  try {
    if (cosmos->parsed()) return dfm::bench::run_cosmos(cosmos_options);
    if (t5->parsed()) return dfm::bench::run_t5(t5_options);
    return run_step(options);
  } catch (const dfm::Error& error) {
    fmt::print(stderr, "dfm_bench: error: {}\n", error.what());
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "dfm_bench: error: {}\n", error.what());
    return static_cast<int>(dfm::ExitCode::kInternal);
  }
}
