#include "t5.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>

#include "dfm/base/error.h"
#include "dfm/ops/device.h"
#include "models/t5/t5_network.h"

namespace dfm::bench {
namespace {

using Clock = std::chrono::steady_clock;

models::T5Config config_of(const std::string& name) {
  const auto v10 = [](std::int64_t d_model, std::int64_t d_kv, std::int64_t d_ff, std::int64_t heads,
                      std::int64_t layers) {
    return models::T5Config{.d_model = d_model, .d_kv = d_kv, .d_ff = d_ff, .num_layers = layers, .num_heads = heads};
  };
  const std::map<std::string, models::T5Config> configs = {
      {"t5-small", v10(512, 64, 2048, 8, 6)},     {"t5-base", v10(768, 64, 3072, 12, 12)},
      {"t5-large", v10(1024, 64, 4096, 16, 24)},  {"t5-3b", v10(1024, 128, 16384, 32, 24)},
      {"t5-11b", v10(1024, 128, 65536, 128, 24)}, {"t5-v1_1-xxl", v10(4096, 64, 10240, 64, 24)},
  };
  const auto found = configs.find(name);
  if (found == configs.end()) {
    throw ConfigError("--model: got {}, want t5-small, t5-base, t5-large, t5-3b, t5-11b or t5-v1_1-xxl", name);
  }
  models::T5Config config = found->second;
  if (name == "t5-v1_1-xxl") {
    config.gated = true;
    config.activation = models::T5Activation::kGeluTanh;
  }
  return config;
}

at::ScalarType dtype_of(const std::string& precision, const at::Device& device) {
  if (precision == "fp32" || (precision == "auto" && device.is_cpu())) return at::kFloat;
  if (precision == "bf16" || precision == "auto") return at::kBFloat16;
  throw ConfigError("--precision: got {}, want auto, fp32 or bf16", precision);
}

}  // namespace

CLI::App* add_t5(CLI::App& app, T5Bench& options) {
  CLI::App* t5 = app.add_subcommand("t5", "T5's encoder, random weights: captions of given lengths");
  t5->add_option("--model", options.model, "t5-small, t5-base, t5-large, t5-3b, t5-11b or t5-v1_1-xxl");
  t5->add_option("--layers", options.layers, "Fewer layers than the model has; 0: all");
  t5->add_option("--captions", options.captions, "Captions of a run")->check(CLI::PositiveNumber);
  t5->add_option("--lengths", options.lengths, "Their lengths in tokens, in turn, 1 to 512")
      ->delimiter(',')
      ->check(CLI::Range(1, 512));
  t5->add_flag("--offload", options.offload, "Weights in host memory, streamed to the GPU layer by layer");
  t5->add_option("--warmup", options.warmup, "Runs before the clock starts");
  t5->add_option("--steps", options.steps, "Runs that are timed")->check(CLI::PositiveNumber);
  t5->add_option("--threads", options.threads, "CPU threads; 0: all");
  t5->add_option("--device", options.device, "auto, cpu or cuda");
  t5->add_option("--precision", options.precision, "auto, fp32 or bf16");
  return t5;
}

int run_t5(const T5Bench& options) {
  const at::NoGradGuard no_grad;
  const at::Device device = ops::select_device(options.device, 0);
  ops::set_num_threads(options.threads);
  models::T5Config config = config_of(options.model);
  if (options.layers > 0) config.num_layers = options.layers;
  const at::ScalarType dtype = dtype_of(options.precision, device);
  const models::T5Network network(models::load_t5_weights(config, models::random_t5_tensors(config, device, dtype),
                                                          device, dtype, options.offload));
  std::vector<std::vector<std::int32_t>> captions;
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < options.captions; ++i) {
    const std::int64_t length = options.lengths[static_cast<std::size_t>(i) % options.lengths.size()];
    std::vector<std::int32_t> ids;
    for (std::int64_t j = 0; j < length; ++j) ids.push_back(static_cast<std::int32_t>((i * 7919 + j * 104729) % 32000));
    captions.push_back(std::move(ids));
    tokens += length;
  }
  auto* allocator = device.is_cuda() ? c10::getDeviceAllocator(device.type()) : nullptr;
  if (allocator != nullptr) {
    allocator->emptyCache();
    allocator->resetPeakStats(device.index());
  }
  double fastest = 0;
  for (std::int64_t i = 0; i < options.warmup + options.steps; ++i) {
    const auto start = Clock::now();
    const std::vector<at::Tensor> rows = network.encode(captions);
    static_cast<void>(rows.back().sum().item<float>());  // waits for the GPU
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i >= options.warmup) fastest = fastest == 0 ? seconds : std::min(fastest, seconds);
  }
  const double peak =
      allocator == nullptr
          ? 0
          : static_cast<double>(allocator->getDeviceStats(device.index()).allocated_bytes[0].peak) / 1e9;
  fmt::print(
      "{{\"name\": \"dfm t5{}\", \"model\": \"{}\", \"layers\": {}, \"device\": \"{}\", \"precision\": \"{}\", "
      "\"captions\": {}, \"tokens\": {}, \"ms\": {:.2f}, \"tokens_per_s\": {:.0f}, \"captions_per_s\": {:.1f}, "
      "\"peak_gb\": {:.2f}}}\n",
      options.offload ? " offload" : "", options.model, config.num_layers, ops::describe_device(device),
      dtype == at::kFloat ? "fp32" : "bf16", options.captions, tokens, fastest * 1e3,
      static_cast<double>(tokens) / fastest, static_cast<double>(options.captions) / fastest, peak);
  return 0;
}

}  // namespace dfm::bench
