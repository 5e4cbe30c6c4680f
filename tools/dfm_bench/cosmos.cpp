#include "cosmos.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/ops/device.h"
#include "models/cosmos_tokenizer/random_weights.h"
#include "models/cosmos_tokenizer/tokenizer.h"

namespace dfm::bench {
namespace {

using Clock = std::chrono::steady_clock;

models::cosmos::Config variant(const std::string& name) {
  models::cosmos::Config config;  // CV8x8x8
  if (name == "CV8x8x8") return config;
  config.spatial_compression = name == "CV8x16x16" ? 16 : 8;
  if (name == "CV8x16x16") return config;
  if (name != "CV4x8x8") throw ConfigError("--variant: got {}, want CV4x8x8, CV8x8x8 or CV8x16x16", name);
  config.temporal_compression = 4;
  config.encoder_widths = {128, 256, 512};
  config.decoder_widths = {256, 512, 512};
  return config;
}

models::Precision precision(const std::string& name) {
  if (name == "auto") return models::Precision::kAuto;
  if (name == "fp32") return models::Precision::kFp32;
  if (name == "bf16") return models::Precision::kBf16;
  throw ConfigError("--precision: got {}, want auto, fp32 or bf16", name);
}

// Peak bytes of tensors on the GPU since the last call; 0 on a CPU.
std::int64_t peak_bytes(const at::Device& device) {
  if (!device.is_cuda()) return 0;
  auto* allocator = c10::getDeviceAllocator(device.type());
  const auto peak = allocator->getDeviceStats(device.index()).allocated_bytes[0].peak;
  allocator->resetPeakStats(device.index());
  return peak;
}

// The fastest run; `body` returns a value, reading which waits for the GPU.
template <typename Body>
void time(const CosmosBench& options, const at::Device& device, const char* what, const Body& body) {
  double fastest = 0;
  static_cast<void>(peak_bytes(device));
  for (std::int64_t i = 0; i < options.warmup + options.steps; ++i) {
    const auto start = Clock::now();
    static_cast<void>(body().template item<float>());
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (i >= options.warmup) fastest = fastest == 0 ? seconds : std::min(fastest, seconds);
  }
  fmt::print(
      "{{\"name\": \"dfm {}\", \"variant\": \"{}\", \"device\": \"{}\", \"size\": \"{}x{}x{}x{}\", \"ms\": {:.2f}, "
      "\"frames_per_s\": {:.1f}, \"peak_gb\": {:.2f}}}\n",
      what, options.variant, ops::describe_device(device), options.batch, options.frames, options.height, options.width,
      fastest * 1e3, static_cast<double>(options.batch * options.frames) / fastest,
      static_cast<double>(peak_bytes(device)) / 1e9);
  std::fflush(stdout);
}

}  // namespace

CLI::App* add_cosmos(CLI::App& app, CosmosBench& options) {
  CLI::App* cosmos = app.add_subcommand("cosmos", "Cosmos tokenizer, random weights: encode and decode");
  cosmos->add_option("--variant", options.variant, "CV4x8x8, CV8x8x8 or CV8x16x16");
  cosmos->add_option("--height", options.height, "Pixels");
  cosmos->add_option("--width", options.width, "Pixels");
  cosmos->add_option("--frames", options.frames, "1 + n times the temporal compression");
  cosmos->add_option("--batch", options.batch, "Clips encoded at once")->check(CLI::PositiveNumber);
  cosmos->add_option("--what", options.what, "encode, decode or both");
  cosmos->add_option("--decode-window", options.decode_window, "Latent frames that attention looks back; 0: all");
  cosmos->add_option("--tile", options.tile, "Side of blended tiles; 0: whole frames");
  cosmos->add_option("--warmup", options.warmup, "Runs before the clock starts");
  cosmos->add_option("--steps", options.steps, "Runs that are timed")->check(CLI::PositiveNumber);
  cosmos->add_option("--device", options.device, "auto, cpu or cuda");
  cosmos->add_option("--precision", options.precision, "auto, fp32 or bf16");
  return cosmos;
}

int run_cosmos(const CosmosBench& options) {
  const at::NoGradGuard no_grad;
  const at::Device device = ops::select_device(options.device, 0);
  const models::cosmos::Config config = variant(options.variant);
  models::EncoderOptions encoder_options;
  encoder_options.device = device;
  encoder_options.precision = precision(options.precision);
  encoder_options.decode_window = options.decode_window;
  encoder_options.tile = options.tile;
  const models::cosmos::Tokenizer tokenizer(
      options.variant, config, {}, models::cosmos::random_weights(config, 1, false), encoder_options, "random weights");
  const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat).device(device);
  if (options.what != "decode") {
    const at::Tensor pixels =
        at::rand({options.batch, 3, options.frames, options.height, options.width}, floats).mul_(2).sub_(1);
    time(options, device, "encode", [&] { return tokenizer.encode_batch(pixels).flatten()[0]; });
  }
  if (options.what != "encode") {
    const std::int64_t t = 1 + (options.frames - 1) / config.temporal_compression;
    const at::Tensor latent = at::randn({config.latent_channels, t, options.height / config.spatial_compression,
                                         options.width / config.spatial_compression},
                                        floats);
    time(options, device, "decode", [&] {
      at::Tensor last;
      for (std::int64_t i = 0; i < options.batch; ++i) {
        tokenizer.decode_frames(latent, [&](const at::Tensor& frames) { last = frames.select(1, 0).flatten()[0]; });
      }
      return last;
    });
  }
  return 0;
}

}  // namespace dfm::bench
