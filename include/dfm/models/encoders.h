#pragma once
// The two encoders that stand between pixels, text and the DiT, as interfaces: `builtin` is weightless and always
// there.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dfm::models {

// A causal video tokenizer. Pixels are float [3, T, H, W] in [-1, 1], T = 1 + k n, H and W multiples of 2 s (k
// temporal, s spatial compression); latents float [C, t, h, w] with t = 1 + (T - 1) / k, h = H / s, w = W / s. The
// first latent frame depends on the first pixel frame only. Thread safe.
class VideoTokenizer {
 public:
  virtual ~VideoTokenizer() = default;
  [[nodiscard]] virtual std::string name() const = 0;  // what --tokenizer takes and the data set's card records
  [[nodiscard]] virtual std::int64_t latent_channels() const = 0;
  [[nodiscard]] virtual std::int64_t temporal_compression() const = 0;
  [[nodiscard]] virtual std::int64_t spatial_compression() const = 0;
  [[nodiscard]] virtual at::Tensor encode(const at::Tensor& pixels_CTHW) const = 0;
  [[nodiscard]] virtual at::Tensor decode(const at::Tensor& latent_CTHW) const = 0;
};

// Captions to rows of `width` floats, at most `max_length` rows each. An empty caption has one row (the end mark).
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::int64_t width() const = 0;
  [[nodiscard]] virtual std::int64_t max_length() const = 0;  // 512
  // One float tensor [length, width] a caption, length >= 1.
  [[nodiscard]] virtual std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const = 0;
};

// `name` as the user gave it ("builtin"). Anything this build cannot load is a ConfigError that says what can be.
std::unique_ptr<VideoTokenizer> make_tokenizer(const std::string& name, at::Device device);
std::unique_ptr<TextEncoder> make_text_encoder(const std::string& name, at::Device device);

}  // namespace dfm::models
