// dfm_psnr [FOLDER...]: what the builtin tokenizer keeps of pictures and clips, and the channel scales that they ask
// for. Each FOLDER is one kind of media; drawn butterflies are always measured too. docs/numerics.md shows its output.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "dfm/data/source.h"
#include "dfm/models/encoders.h"
#include "models/builtin/channel_statistics.h"

namespace {

using dfm::models::ChannelScales;
using dfm::models::ChannelStatistics;

struct Mean {
  double sum = 0, count = 0;
  void add(double value) { sum += value, ++count; }
  [[nodiscard]] std::string text() const { return count > 0 ? fmt::format("{:.1f}", sum / count) : "-"; }
};

// PSNR of first frames and of all other frames, averaged over the files, at one short side.
void print_quality(const std::string& input, std::int64_t short_side) {
  const auto tokenizer = dfm::models::make_tokenizer("builtin", {});
  const auto source = dfm::data::open_source({.input = input, .seed = 1234});
  Mean first, rest;
  for (std::size_t i = 0; i < source->size(); ++i) {
    const at::Tensor pixels =
        dfm::models::pixels_of_rgb(source->load(i, {.short_side = short_side, .num_video_frames = 33}).rgb_THW3);
    const at::Tensor decoded = tokenizer->decode(tokenizer->encode(pixels));
    first.add(dfm::models::psnr(decoded.narrow(1, 0, 1), pixels.narrow(1, 0, 1)));
    const std::int64_t others = pixels.size(1) - 1;
    if (others > 0) rest.add(dfm::models::psnr(decoded.narrow(1, 1, others), pixels.narrow(1, 1, others)));
  }
  fmt::print("| {} | {} | {} | {} | {} |\n", input, short_side, source->size(), first.text(), rest.text());
}

ChannelStatistics measure(const std::string& input, std::int64_t short_side, std::int64_t frames) {
  const auto tokenizer = dfm::models::make_tokenizer("builtin", {});
  const auto source = dfm::data::open_source({.input = input, .seed = 1234});
  ChannelStatistics statistics;
  for (std::size_t i = 0; i < source->size(); ++i) {
    const auto media = source->load(i, {.short_side = short_side, .num_video_frames = frames});
    statistics.add(*tokenizer, dfm::models::pixels_of_rgb(media.rgb_THW3));
  }
  return statistics;
}

void print_scales(const char* name, const std::vector<ChannelStatistics::Deviations>& kinds, const ChannelScales& now) {
  const ChannelScales scales = dfm::models::scales_from_deviations(dfm::models::combine(kinds));
  fmt::print("{} = {{", name);
  for (std::size_t i = 0; i < scales.size(); ++i) fmt::print("{}{:.4g}", i == 0 ? "" : ", ", scales[i]);
  fmt::print("}}\n");
  for (const auto& kind : kinds) {
    double mean_square = 0;
    for (std::size_t i = 0; i < now.size(); ++i) mean_square += kind[i] / now[i] * kind[i] / now[i] / 16;
    fmt::print("  latent rms of one kind with the constants in use: {:.2f}\n", std::sqrt(mean_square));
  }
}

int run(const std::vector<std::string>& folders) {
  const std::string butterflies = "synthetic:butterflies:40";
  fmt::print("| input | short side | files | PSNR of first frames, dB | of later frames |\n|---|---|---|---|---|\n");
  for (const std::string& folder : folders) {
    for (const std::int64_t side : {512, 256, 128}) print_quality(folder, side);
  }
  for (const std::int64_t side : {128, 96, 64}) print_quality(butterflies, side);

  std::vector<ChannelStatistics::Deviations> pictures, groups;
  const auto keep = [&](const ChannelStatistics& statistics) {
    if (const auto deviations = statistics.picture_deviations()) pictures.push_back(*deviations);
    if (const auto deviations = statistics.group_deviations()) groups.push_back(*deviations);
  };
  for (const std::string& folder : folders) keep(measure(folder, 256, 17));
  keep(measure(butterflies, 96, 9));
  fmt::print("\n");
  print_scales("picture_scales", pictures, dfm::models::picture_scales());
  print_scales("group_scales", groups, dfm::models::group_scales());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "dfm_psnr: error: {}\n", error.what());
    return 1;
  }
}
