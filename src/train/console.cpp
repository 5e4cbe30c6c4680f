#include "train/console.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/accumulate.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>

#include "dfm/ops/device.h"

namespace dfm::train {
namespace {

bool stderr_is_terminal() {
  static const bool is_terminal = isatty(STDERR_FILENO) != 0;
  return is_terminal;
}

std::string count(std::int64_t number) {
  if (number >= 1'000'000) return fmt::format("{:.2f} M", static_cast<double>(number) * 1e-6);
  return fmt::format("{}", number);
}

}  // namespace

void Console::say(const std::string& line) {
  if (out_ == nullptr) return;
  // The bar gives way to the line and is drawn again below it.
  if (bar_) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }
  fmt::print(out_, "{}\n", line);
  std::fflush(out_);
}

void Console::start_bar(std::int64_t train_iters, std::int64_t done) {
  if (out_ != nullptr && stderr_is_terminal())
    bar_.emplace("train", static_cast<std::uint64_t>(train_iters), "steps", static_cast<std::uint64_t>(done));
}

void Console::advance_bar(const std::string& note) {
  if (!bar_) return;
  bar_->set_note(note);
  bar_->advance(1);
}

void Console::finish_bar() { bar_.reset(); }

std::vector<std::string> describe_run(const TrainConfig& config, const std::string& recipe, const models::Dit& model,
                                      const data::Dataset& dataset, at::Device device, Precision precision,
                                      const Layout& layout, std::int64_t done) {
  std::int64_t parameters = 0;
  for (const parallel::Parameter& parameter : model.placed_parameters())
    parameters += c10::multiply_integers(parameter.shape);
  const models::DitConfig& shape = model.config();
  const data::DatasetCard& card = dataset.card();
  const std::size_t num_samples = dataset.entries().size();
  std::int64_t clips = 0;
  for (const data::SampleEntry& entry : dataset.entries()) clips += entry.frames > 1 ? 1 : 0;
  const std::int64_t num_ranks = layout.sizes.world();
  std::string ranks;
  if (num_ranks > 1) {
    ranks = fmt::format("; {} ranks: {}{}", num_ranks, comm::describe(layout.sizes),
                        layout.parallel.sequence ? ", sequence parallel" : "");
  }
  return {
      fmt::format("Training a DiT{}: {} layers, width {}, {} heads, {} parameters",
                  recipe.empty() ? "" : fmt::format(" (recipe {})", recipe), shape.num_layers, shape.hidden_size,
                  shape.num_attention_heads, count(parameters)),
      fmt::format("Device: {}; precision {}{}", ops::describe_device(device), config::enum_name(precision), ranks),
      fmt::format("Data: {}: {} pictures, {} clips; tokenizer {}, text encoder {}", dataset.description(),
                  static_cast<std::int64_t>(num_samples) - clips, clips, card.tokenizer, card.text_encoder),
      fmt::format("Steps: {} to {}, {} samples each; a checkpoint {}", done + 1, config.train.train_iters,
                  config.train.global_batch_size,
                  config.checkpoint.save_interval > 0 ? fmt::format("every {} steps", config.checkpoint.save_interval)
                                                      : "at the end"),
      fmt::format("Run folder: {}", config.checkpoint.save.string()),
  };
}

double peak_flops(const std::string& device_name, Precision precision) {
  if (precision != Precision::kBf16Mixed) return 0;
  // Dense bf16 of the vendor's data sheets. The order matters: the longer name first.
  constexpr std::array kPeaks = {
      std::pair{"H100 PCIe", 756e12}, std::pair{"H100 NVL", 835e12}, std::pair{"H100", 989e12},
      std::pair{"H200", 989e12},      std::pair{"A100", 312e12},     std::pair{"B200", 2250e12},
      std::pair{"L40S", 362e12},
  };
  for (const auto& [name, peak] : kPeaks) {
    if (device_name.find(name) != std::string::npos) return peak;
  }
  return 0;
}

std::string describe_memory(at::Device device) {
  if (device.is_cuda()) {
    const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
    const auto all = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return fmt::format("{} of the GPU at most",
                       format_bytes(static_cast<std::uint64_t>(stats.allocated_bytes[all].peak)));
  }
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return fmt::format("{} at most", format_bytes(static_cast<std::uint64_t>(usage.ru_maxrss) * 1024));
}

}  // namespace dfm::train
