#include "inspect/decode.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/error.h"
#include "dfm/formats/contact_sheet.h"
#include "dfm/formats/media.h"

namespace dfm::inspect {
namespace {

constexpr std::int64_t kTileSide = 256, kGap = 4;
constexpr double kDefaultFps = 24;

// [3, H, W] in [-1, 1] -> uint8 [H, W, 3] on the CPU.
at::Tensor to_rgb(const at::Tensor& pixels_CHW) {
  return pixels_CHW.to(at::kFloat)
      .add(1)
      .mul(127.5)
      .round()
      .clamp(0, 255)
      .to(at::kCPU, at::kByte)
      .permute({1, 2, 0})
      .contiguous();
}

at::Tensor tile_of(const at::Tensor& rgb_HW3) {
  const std::int64_t height = rgb_HW3.size(0), width = rgb_HW3.size(1), side = std::max(height, width);
  if (side <= kTileSide) return rgb_HW3;
  return formats::resize_rgb(rgb_HW3, std::max<std::int64_t>(1, height * kTileSide / side),
                             std::max<std::int64_t>(1, width * kTileSide / side));
}

// The picture, or the clip's first, middle and last frame side by side.
at::Tensor strip_of(const models::VideoTokenizer& tokenizer, const at::Tensor& latent_CTHW) {
  const std::int64_t frames = 1 + (latent_CTHW.size(1) - 1) * tokenizer.temporal_compression();
  std::vector<at::Tensor> tiles;
  std::int64_t t = 0;
  tokenizer.decode_frames(latent_CTHW, [&](const at::Tensor& pixels_CTHW) {
    for (std::int64_t i = 0; i < pixels_CTHW.size(1); ++i, ++t) {
      if (t == 0 || t == frames - 1 || t == frames / 2) tiles.push_back(tile_of(to_rgb(pixels_CTHW.select(1, i))));
    }
  });
  return tiles.size() == 1 ? tiles[0] : formats::contact_sheet(tiles, static_cast<std::int64_t>(tiles.size()), 1);
}

at::Tensor latent_of(const TarSample& sample, const StoredSample& stored, const models::VideoTokenizer& tokenizer,
                     at::Device device) {
  const std::string name = fmt::format("{}: {}", sample.shard.string(), sample.key);
  if (!stored.latent_CTHW.defined()) throw DataError("{}: got no .pth part, want a latent to decode", name);
  if (stored.latent_CTHW.size(0) != tokenizer.latent_channels()) {
    throw ConfigError("tokenizer {}: got {} latent channels, want {} as {} has; hint: --tokenizer NAME",
                      tokenizer.name(), tokenizer.latent_channels(), stored.latent_CTHW.size(0), name);
  }
  return stored.latent_CTHW.to(device, at::kFloat);
}

std::int64_t columns_of(std::size_t num_tiles, bool has_clips) {
  // A sheet about as wide as it is high: a clip's tile is three frames wide.
  const double ratio = has_clips ? 3.0 : 1.0;
  return std::max<std::int64_t>(1, std::llround(std::sqrt(static_cast<double>(num_tiles) / ratio)));
}

void make_folder_for(const std::filesystem::path& file) {
  if (file.has_parent_path()) std::filesystem::create_directories(file.parent_path());
}

Facts write_clip(const std::vector<TarSample>& samples, const models::VideoTokenizer& tokenizer,
                 const data::DatasetCard& card, const InspectOptions& options, at::Device device) {
  for (const TarSample& sample : samples) {
    const StoredSample stored = read_stored(sample);
    if (!stored.latent_CTHW.defined() || (stored.latent_CTHW.size(1) == 1 && samples.size() > 1)) continue;
    const at::Tensor latent_CTHW = latent_of(sample, stored, tokenizer, device);
    const double fps = stored.fps > 0 ? stored.fps : card.fps > 0 ? card.fps : kDefaultFps;
    std::optional<formats::Mp4Writer> writer;
    std::int64_t frames = 0;
    tokenizer.decode_frames(latent_CTHW, [&](const at::Tensor& pixels_CTHW) {
      for (std::int64_t i = 0; i < pixels_CTHW.size(1); ++i, ++frames) {
        const at::Tensor rgb_HW3 = to_rgb(pixels_CTHW.select(1, i));
        if (!writer) {
          writer.emplace(options.decode, rgb_HW3.size(0), rgb_HW3.size(1), formats::Mp4Options{.fps = fps});
        }
        writer->add(rgb_HW3.unsqueeze(0));
      }
    });
    writer->close();
    return {{"file", options.decode.string()}, {"samples", {sample.key}}, {"frames", frames}, {"fps", fps}};
  }
  throw DataError("{}: got no clip in it, want one for {}; hint: --decode NAME.png shows pictures",
                  options.path.string(), options.decode.string());
}

}  // namespace

Facts decode_samples(const std::vector<TarSample>& samples, const data::DatasetCard& card,
                     const InspectOptions& options, at::Device device) {
  const at::NoGradGuard no_grad;
  const std::string name = options.tokenizer.empty() ? card.tokenizer : options.tokenizer;
  models::fetch_tokenizer(name, {});
  const std::unique_ptr<models::VideoTokenizer> tokenizer = models::make_tokenizer(name, {.device = device});
  make_folder_for(options.decode);
  if (options.decode.extension() == ".mp4") return write_clip(samples, *tokenizer, card, options, device);
  std::vector<at::Tensor> tiles;
  std::vector<std::string> keys;
  bool has_clips = false;
  for (const TarSample& sample : samples) {
    const StoredSample stored = read_stored(sample);
    const at::Tensor latent_CTHW = latent_of(sample, stored, *tokenizer, device);
    has_clips = has_clips || latent_CTHW.size(1) > 1;
    tiles.push_back(strip_of(*tokenizer, latent_CTHW));
    keys.push_back(sample.key);
  }
  formats::write_png(options.decode, formats::contact_sheet(tiles, columns_of(tiles.size(), has_clips), kGap));
  return {{"file", options.decode.string()}, {"samples", keys}};
}

}  // namespace dfm::inspect
