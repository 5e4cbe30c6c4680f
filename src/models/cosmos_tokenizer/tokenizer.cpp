#include "models/cosmos_tokenizer/tokenizer.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <fmt/ranges.h>

#include "dfm/base/error.h"

namespace dfm::models::cosmos {
namespace {

// Of the largest activation of a piece. About five of that size live at once, and what streams keep beside them.
constexpr std::int64_t kCpuPieceBytes = std::int64_t{96} << 20, kGpuPieceBytes = std::int64_t{512} << 20;
constexpr std::int64_t kStripFactor = 2;  // strips begin where one latent frame takes more than so many pieces
constexpr std::int64_t kLeastTile = 64;

at::ScalarType compute_type(const EncoderOptions& options) {
  if (options.precision == Precision::kAuto) return options.device.is_cuda() ? at::kBFloat16 : at::kFloat;
  return options.precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat;
}

// Rises from the edges that have a neighbour over a quarter of the tile.
at::Tensor ramp(std::int64_t length, std::int64_t overlap, bool before, bool after, at::Device device) {
  const at::Tensor weight = at::ones({length}, at::TensorOptions().dtype(at::kFloat).device(device));
  const at::Tensor rise = (at::arange(overlap, weight.options()) + 0.5) / static_cast<double>(overlap);
  if (before) weight.narrow(0, 0, overlap).mul_(rise);
  if (after) weight.narrow(0, length - overlap, overlap).mul_(rise.flip(0));
  return weight;
}

struct Span {
  std::int64_t begin, length;
};
std::vector<Span> spans(std::int64_t length, std::int64_t side, std::int64_t overlap) {
  if (side <= 0 || length <= side) return {{0, length}};
  std::vector<Span> result;
  for (std::int64_t begin = 0;; begin += side - overlap) {
    if (begin + side >= length) {
      result.push_back({length - side, side});
      return result;
    }
    result.push_back({begin, side});
  }
}

// Adds pieces of tiles up; the sum of their weights is divided out at the end.
class Blend {
 public:
  Blend(std::int64_t height, std::int64_t width, std::int64_t overlap)
      : height_(height), width_(width), overlap_(overlap) {}
  // part: [..., h, w] whose corner is at (y, x).
  void add(const at::Tensor& part, std::int64_t y, std::int64_t x) {
    const std::int64_t h = part.size(-2), w = part.size(-1);
    const at::Tensor weight = ramp(h, std::min(overlap_, h), y > 0, y + h < height_, part.device()).unsqueeze(1) *
                              ramp(w, std::min(overlap_, w), x > 0, x + w < width_, part.device());
    if (!sum_.defined()) {
      std::vector<std::int64_t> sizes = part.sizes().vec();
      sizes[sizes.size() - 2] = height_;
      sizes[sizes.size() - 1] = width_;
      sum_ = at::zeros(sizes, part.options());
      weight_ = at::zeros({height_, width_}, part.options());
    }
    sum_.narrow(-2, y, h).narrow(-1, x, w).add_(part * weight);
    weight_.narrow(0, y, h).narrow(1, x, w).add_(weight);
  }
  [[nodiscard]] at::Tensor result() const { return sum_ / weight_; }

 private:
  std::int64_t height_, width_, overlap_;
  at::Tensor sum_, weight_;
};

}  // namespace

Tokenizer::Tokenizer(std::string name, const Config& config, LatentStatistics statistics, const NamedTensors& tensors,
                     const EncoderOptions& options, const std::string& where)
    : name_(std::move(name)),
      config_(config),
      statistics_(std::move(statistics)),
      options_(options),
      dtype_(compute_type(options)),
      encoder_(config, tensors, {options.device, dtype_, where}),
      decoder_(config, tensors, {options.device, dtype_, where}) {
  if (options_.tile != 0 && options_.tile < kLeastTile) {
    throw ConfigError("tile of the tokenizer: got {}, want 0 or at least {} pixels", options_.tile, kLeastTile);
  }
  if (options_.decode_window < 0) {
    throw ConfigError("decode window of the tokenizer: got {}, want 0 or more latent frames", options_.decode_window);
  }
}

std::vector<Tokenizer::Tile> Tokenizer::tiles(std::int64_t height, std::int64_t width) const {
  const std::int64_t side = options_.tile == 0 ? 0 : std::max<std::int64_t>(options_.tile / spatial_compression(), 2);
  std::vector<Tile> result;
  for (const Span& rows : spans(height, side, std::max<std::int64_t>(side / 4, 1))) {
    for (const Span& columns : spans(width, side, std::max<std::int64_t>(side / 4, 1))) {
      result.push_back({rows.begin, columns.begin, rows.length, columns.length});
    }
  }
  return result;
}

std::int64_t Tokenizer::bytes_of_frame(std::int64_t height, std::int64_t width, std::int64_t channels) const {
  const std::int64_t grid = config_.spatial_compression / config_.patch_size;
  return config_.temporal_compression / config_.patch_size * height * grid * width * grid * channels *
         static_cast<std::int64_t>(at::elementSize(dtype_));
}

std::int64_t Tokenizer::piece_frames(std::int64_t clips, std::int64_t height, std::int64_t width,
                                     std::int64_t channels) const {
  if (cuts_.latent_frames > 0) return cuts_.latent_frames;
  const std::int64_t budget = options_.device.is_cuda() ? kGpuPieceBytes : kCpuPieceBytes;
  return std::max<std::int64_t>(budget / std::max<std::int64_t>(clips * bytes_of_frame(height, width, channels), 1), 1);
}

void Tokenizer::prepare(Stream& stream) const {
  const std::int64_t chosen = kStripFactor * (options_.device.is_cuda() ? kGpuPieceBytes : kCpuPieceBytes);
  stream.strip_bytes = cuts_.strip_bytes > 0 ? cuts_.strip_bytes : chosen;
}

at::Tensor Tokenizer::encode(const at::Tensor& pixels_CTHW) const {
  if (pixels_CTHW.dim() != 4) {
    throw ConfigError("pixels for {}: got shape {}, want [3, T, H, W]", name_, fmt::join(pixels_CTHW.sizes(), "x"));
  }
  return encode_batch(pixels_CTHW.unsqueeze(0)).squeeze(0);
}

at::Tensor Tokenizer::encode_batch(const at::Tensor& pixels_NCTHW) const {
  const at::NoGradGuard no_grad;
  const c10::DeviceGuard guard(options_.device);
  const std::int64_t k = temporal_compression(), s = spatial_compression();
  const auto sizes = pixels_NCTHW.sizes();
  if (sizes.size() != 5 || sizes[1] != 3 || pixels_NCTHW.numel() == 0 || (sizes[2] - 1) % k != 0 || sizes[3] % s != 0 ||
      sizes[4] % s != 0) {
    throw ConfigError("pixels for {}: got shape {}, want [N, 3, 1 + {} n, {} h, {} w]", name_, fmt::join(sizes, "x"), k,
                      s, s);
  }
  // As many clips at once as fit a piece.
  const std::int64_t channels = std::max(config_.encoder_widths[0], config_.encoder_widths[1]);
  const std::int64_t clips = std::min(sizes[0], piece_frames(1, sizes[3] / s, sizes[4] / s, channels));
  if (clips >= sizes[0]) return encode_clips(pixels_NCTHW);
  std::vector<at::Tensor> latents;
  for (const at::Tensor& part : pixels_NCTHW.split(clips)) latents.push_back(encode_clips(part));
  return at::cat(latents);
}

at::Tensor Tokenizer::encode_clips(const at::Tensor& pixels_NCTHW) const {
  const std::int64_t k = temporal_compression(), s = spatial_compression();
  const std::int64_t h = pixels_NCTHW.size(3) / s, w = pixels_NCTHW.size(4) / s, t = 1 + (pixels_NCTHW.size(2) - 1) / k;
  const std::vector<Tile> parts = tiles(h, w);
  const std::int64_t channels = std::max(config_.encoder_widths[0], config_.encoder_widths[1]);
  const std::int64_t step = piece_frames(pixels_NCTHW.size(0), parts[0].height, parts[0].width, channels);
  Blend blend(h, w, std::max<std::int64_t>(parts[0].height / 4, 1));
  for (const Tile& tile : parts) {
    const at::Tensor clip = pixels_NCTHW.narrow(3, tile.y * s, tile.height * s).narrow(4, tile.x * s, tile.width * s);
    Stream stream = encoder_.start();
    prepare(stream);
    std::vector<at::Tensor> latents;
    for (std::int64_t begin = 0; begin < t; begin += step) {
      const std::int64_t end = std::min(begin + step, t), first = begin == 0 ? 0 : 1 + (begin - 1) * k;
      stream.last = end == t;
      latents.push_back(encoder_(stream, clip.narrow(2, first, 1 + (end - 1) * k - first)));
    }
    const at::Tensor latent = latents.size() == 1 ? latents[0] : at::cat(latents, 2);
    if (parts.size() == 1) return latent;
    blend.add(latent, tile.y, tile.x);
  }
  return blend.result();
}

at::Tensor Tokenizer::decode(const at::Tensor& latent_CTHW) const {
  std::vector<at::Tensor> pieces;
  decode_frames(latent_CTHW, [&](const at::Tensor& pixels_CTHW) { pieces.push_back(pixels_CTHW); });
  return pieces.size() == 1 ? pieces[0] : at::cat(pieces, 1);
}

void Tokenizer::decode_frames(const at::Tensor& latent_CTHW,
                              const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const {
  const at::NoGradGuard no_grad;
  const c10::DeviceGuard guard(options_.device);
  const auto sizes = latent_CTHW.sizes();
  if (sizes.size() != 4 || sizes[0] != latent_channels() || latent_CTHW.numel() == 0) {
    throw ConfigError("latent for {}: got shape {}, want [{}, t, h, w]", name_, fmt::join(sizes, "x"),
                      latent_channels());
  }
  const std::int64_t t = sizes[1], s = spatial_compression();
  const std::vector<Tile> parts = tiles(sizes[2], sizes[3]);
  const std::int64_t channels = std::max(config_.decoder_widths[0], config_.decoder_widths[1]);
  const std::int64_t step = piece_frames(1, parts[0].height, parts[0].width, channels);
  std::vector<Stream> streams;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    streams.push_back(decoder_.start());
    prepare(streams.back());
    streams.back().window = options_.decode_window;
  }
  const at::Tensor latent_NCTHW = latent_CTHW.to(options_.device, at::kFloat).unsqueeze(0);
  for (std::int64_t begin = 0; begin < t; begin += step) {
    const at::Tensor piece = latent_NCTHW.narrow(2, begin, std::min(step, t - begin));
    Blend blend(sizes[2] * s, sizes[3] * s, std::max<std::int64_t>(parts[0].height / 4, 1) * s);
    at::Tensor pixels;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Tile& tile = parts[i];
      streams[i].last = begin + step >= t;
      pixels = decoder_(streams[i], piece.narrow(3, tile.y, tile.height).narrow(4, tile.x, tile.width));
      if (parts.size() > 1) blend.add(pixels, tile.y * s, tile.x * s);
    }
    on_frames((parts.size() > 1 ? blend.result() : pixels).squeeze(0));
  }
}

}  // namespace dfm::models::cosmos
