#pragma once
// The two encoders that stand between pixels, text and the DiT, as interfaces: Cosmos' tokenizers and T5, read from the
// files their owners publish, and `builtin`, which is weightless and always there. docs/encoders.md.
#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace dfm::models {

// Per channel and latent frame, for tokenizers that come with them (Tokenize1-*): what the DiT sees is
// (z - mean) / std. Stored latents are raw. Empty: none.
struct LatentStatistics {
  std::int64_t num_frames = 0;    // columns; later frames have the last one's
  std::vector<double> mean, std;  // [channels * num_frames], channel-major
};

// A causal video tokenizer. Pixels are [3, T, H, W] with T = 1 + k n, H and W multiples of 2 s (k temporal, s spatial
// compression): float in [-1, 1], or uint8 (taken as x / 127.5 - 1); on any device. Latents are float [C, t, h, w] on
// the tokenizer's device, t = 1 + (T - 1) / k, h = H / s, w = W / s. The first latent frame depends on the first pixel
// frame only. Thread safe. Wrong shapes are a ConfigError.
class VideoTokenizer {
 public:
  virtual ~VideoTokenizer() = default;
  [[nodiscard]] virtual std::string name() const = 0;  // what --tokenizer took and the data set's card records
  [[nodiscard]] virtual std::int64_t latent_channels() const = 0;
  [[nodiscard]] virtual std::int64_t temporal_compression() const = 0;
  [[nodiscard]] virtual std::int64_t spatial_compression() const = 0;
  [[nodiscard]] virtual LatentStatistics latent_statistics() const { return {}; }

  [[nodiscard]] virtual at::Tensor encode(const at::Tensor& pixels_CTHW) const = 0;
  // [N, 3, T, H, W] -> [N, C, t, h, w]. Default: one by one.
  [[nodiscard]] virtual at::Tensor encode_batch(const at::Tensor& pixels_NCTHW) const;
  // Whether encode_batch gains from batches: small inputs on a GPU.
  [[nodiscard]] virtual bool gains_from_batches() const { return false; }

  // Float pixels [3, T, H, W].
  [[nodiscard]] virtual at::Tensor decode(const at::Tensor& latent_CTHW) const = 0;
  // The same, frame by frame in order of time as they are ready: memory does not grow with the clip's pixels. Each call
  // brings [3, n, H, W], n >= 1. Default: one call.
  virtual void decode_frames(const at::Tensor& latent_CTHW,
                             const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const;
};

// Captions to rows of `width` floats, at most `max_length` rows each. An empty caption has one row (the end mark).
// Thread safe.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::int64_t width() const = 0;
  [[nodiscard]] virtual std::int64_t max_length() const = 0;  // 512
  // Weights that each token passes through: what sharing out work between ranks goes by. 0: next to no work.
  [[nodiscard]] virtual std::int64_t num_parameters() const { return 0; }
  // One float tensor [length, width] a caption, length >= 1, on the encoder's device.
  [[nodiscard]] virtual std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const = 0;
};

enum class Precision { kAuto /* bf16 on a GPU, fp32 on a CPU */, kFp32, kBf16 };
constexpr auto enum_names(Precision) {
  return std::array{std::pair{Precision::kAuto, "auto"}, std::pair{Precision::kFp32, "fp32"},
                    std::pair{Precision::kBf16, "bf16"}};
}

struct EncoderOptions {
  at::Device device = at::kCPU;
  Precision precision = Precision::kAuto;
  std::filesystem::path hub_cache;  // replaces the hub's cache folder; empty: the usual one
  bool offload = false;             // text encoder: its weights are on the device only while it encodes
  std::int64_t decode_window = 0;   // tokenizer: latent frames that temporal attention looks back, 0: all
  std::int64_t tile = 0;            // tokenizer: side in pixels of tiles that are blended, 0: whole frames, exact
};

// `name`: `builtin`, a folder or file, or a hub id (fetched when it is not in the cache). What cannot be had or read is
// an error that says what was looked for: DataError for files and the hub, ConfigError for names.
std::unique_ptr<VideoTokenizer> make_tokenizer(const std::string& name, const EncoderOptions& options);
std::unique_ptr<TextEncoder> make_text_encoder(const std::string& name, const EncoderOptions& options);

// Downloads what make_*() will open, if it is a hub id and not there yet; nothing for `builtin` and paths. To be called
// before ranks have met: a download may take longer than their patience.
void fetch_tokenizer(const std::string& name, const std::filesystem::path& hub_cache);
void fetch_text_encoder(const std::string& name, const std::filesystem::path& hub_cache);

}  // namespace dfm::models
