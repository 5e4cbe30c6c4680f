#include "models/cosmos_tokenizer/jit_tokenizer.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/formats/weights.h"

namespace dfm::models {
namespace {

// The first line of what LibTorch says, which is long and carries traces.
std::string first_line(const std::exception& error) {
  const auto* own = dynamic_cast<const c10::Error*>(&error);
  std::string text = own != nullptr ? own->msg() : error.what();
  // An error inside TorchScript begins with a trace; its cause comes last.
  if (const std::size_t cause = text.find("RuntimeError: "); cause != std::string::npos) text = text.substr(cause + 14);
  return text.substr(0, text.find('\n'));
}

// One TorchScript file: a function from a tensor to a tensor.
class ScriptFile {
 public:
  ScriptFile(const std::filesystem::path& path, at::Device device) : path_(path), device_(device) {
    dtype_ = weights_type(path);
    try {
      module_ = torch::jit::load(path.string(), device);
      module_.eval();
    } catch (const std::exception& error) {
      throw DataError("{}: cannot be loaded as TorchScript: {}", path.string(), first_line(error));
    }
  }

  // A tuple's first element is the result: encoders return (latent, ...).
  [[nodiscard]] at::Tensor run(const at::Tensor& input) const {
    const at::NoGradGuard no_grad;
    c10::IValue result;
    try {
      result = module_.forward({input.to(device_, dtype_)});
    } catch (const std::exception& error) {
      const at::OutOfMemoryError* memory = dynamic_cast<const at::OutOfMemoryError*>(&error);
      if (memory != nullptr) throw ResourceError("{}: out of memory on {}", path_.string(), device_.str());
      throw DataError(
          "{}: cannot run on {} with input {}: {}; hint: a file that was traced on another device or for other shapes "
          "may hold those in its code; use one traced on {}, or the weights as safetensors",
          path_.string(), device_.str(), fmt::join(input.sizes(), "x"), first_line(error), device_.str());
    }
    if (result.isTuple() && !result.toTupleRef().elements().empty()) {
      c10::IValue first = result.toTupleRef().elements()[0];
      result = std::move(first);
    }
    if (!result.isTensor() || result.toTensor().dim() != 5) {
      throw DataError("{}: got a result that is no tensor [N, C, T, H, W]", path_.string());
    }
    const at::Tensor output = result.toTensor();
    if (output.device() != device_ && output.device().type() != device_.type()) {
      throw DataError("{}: got a result on {}, want {}; hint: the file holds a device in its code", path_.string(),
                      output.device().str(), device_.str());
    }
    return output.to(at::kFloat);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  static at::ScalarType weights_type(const std::filesystem::path& path) {
    const formats::Weights weights = formats::Weights::open(path);
    for (const auto& entry : weights.entries()) {
      if (at::isFloatingType(entry.dtype)) return entry.dtype;
    }
    return at::kFloat;
  }

  std::filesystem::path path_;
  at::Device device_;
  at::ScalarType dtype_ = at::kFloat;
  mutable torch::jit::Module module_;  // forward() is not const, but changes nothing
};

class JitTokenizer final : public VideoTokenizer {
 public:
  JitTokenizer(const CosmosFiles& files, const EncoderOptions& options)
      : name_(files.name),
        device_(options.device),
        encoder_(files.encoder_jit, options.device),
        decoder_(files.decoder_jit, options.device) {
    probe();
    if (!files.mean_std.empty()) statistics_ = read_mean_std(files.mean_std, channels_);
  }

  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] std::int64_t latent_channels() const override { return channels_; }
  [[nodiscard]] std::int64_t temporal_compression() const override { return temporal_; }
  [[nodiscard]] std::int64_t spatial_compression() const override { return spatial_; }
  [[nodiscard]] LatentStatistics latent_statistics() const override { return statistics_; }
  [[nodiscard]] at::Tensor encode(const at::Tensor& pixels_CTHW) const override {
    return encode_batch(pixels_CTHW.unsqueeze(0)).squeeze(0);
  }
  [[nodiscard]] bool gains_from_batches() const override { return device_.is_cuda(); }

  [[nodiscard]] at::Tensor encode_batch(const at::Tensor& pixels_NCTHW) const override {
    const bool good = pixels_NCTHW.dim() == 5 && pixels_NCTHW.size(1) == 3 &&
                      (pixels_NCTHW.size(2) - 1) % temporal_ == 0 && pixels_NCTHW.size(3) % (2 * spatial_) == 0 &&
                      pixels_NCTHW.size(4) % (2 * spatial_) == 0 && pixels_NCTHW.numel() > 0;
    if (!good) {
      throw ConfigError("tokenizer {}: got pixels {}, want 3 x (1 + {} n) x H x W with sides that are multiples of {}",
                        name_, fmt::join(pixels_NCTHW.sizes().slice(1), "x"), temporal_, 2 * spatial_);
    }
    at::Tensor pixels = pixels_NCTHW.to(device_);
    if (pixels.scalar_type() == at::kByte) pixels = pixels.to(at::kFloat).div_(127.5).sub_(1);
    const at::Tensor latent = encoder_.run(pixels);
    check(encoder_, latent,
          {pixels.size(0), channels_, 1 + (pixels.size(2) - 1) / temporal_, pixels.size(3) / spatial_,
           pixels.size(4) / spatial_});
    return latent;
  }

  [[nodiscard]] at::Tensor decode(const at::Tensor& latent_CTHW) const override {
    if (latent_CTHW.dim() != 4 || latent_CTHW.size(0) != channels_ || latent_CTHW.numel() == 0) {
      throw ConfigError("tokenizer {}: got a latent {}, want {} x t x h x w", name_,
                        fmt::join(latent_CTHW.sizes(), "x"), channels_);
    }
    const at::Tensor pixels = decoder_.run(latent_CTHW.unsqueeze(0));
    check(decoder_, pixels,
          {1, 3, 1 + (latent_CTHW.size(1) - 1) * temporal_, latent_CTHW.size(2) * spatial_,
           latent_CTHW.size(3) * spatial_});
    return pixels.squeeze(0);
  }

 private:
  static void check(const ScriptFile& file, const at::Tensor& output, const std::vector<std::int64_t>& want) {
    if (output.sizes() == c10::IntArrayRef(want)) return;
    throw DataError("{}: got a result {}, want {}; hint: the file was traced for other shapes", file.path().string(),
                    fmt::join(output.sizes(), "x"), fmt::join(want, "x"));
  }

  // What a picture and a clip of 17 frames, the shortest that tells all compressions up to 16 apart, become.
  void probe() {
    constexpr std::int64_t kSide = 64, kFrames = 17;
    const auto latent_of = [&](std::int64_t frames) {
      const at::Tensor latent = encoder_.run(at::zeros({1, 3, frames, kSide, kSide}, at::kFloat));
      const std::int64_t t = latent.size(2), h = latent.size(3), w = latent.size(4);
      const bool good = latent.size(0) == 1 && h == w && h > 0 && kSide % h == 0 && t > 0 &&
                        (frames == 1 ? t == 1 : t > 1 && (frames - 1) % (t - 1) == 0);
      if (!good) {
        throw DataError("{}: got a latent {} of pixels 1x3x{}x{}x{}, want one of a causal video tokenizer",
                        encoder_.path().string(), fmt::join(latent.sizes(), "x"), frames, kSide, kSide);
      }
      return latent;
    };
    const at::Tensor picture = latent_of(1), clip = latent_of(kFrames);
    channels_ = picture.size(1);
    spatial_ = kSide / picture.size(3);
    temporal_ = (kFrames - 1) / (clip.size(2) - 1);
    check(encoder_, clip, {1, channels_, clip.size(2), picture.size(3), picture.size(4)});
    (void)decode(picture.squeeze(0));
  }

  std::string name_;
  at::Device device_;
  ScriptFile encoder_, decoder_;
  std::int64_t channels_ = 0, temporal_ = 1, spatial_ = 1;
  LatentStatistics statistics_;
};

}  // namespace

std::unique_ptr<VideoTokenizer> open_jit_tokenizer(const CosmosFiles& files, const EncoderOptions& options) {
  if (options.decode_window != 0 || options.tile != 0) {
    log::warning("models", "tokenizer {}: decode windows and tiles have no effect on TorchScript", files.name);
  }
  return std::make_unique<JitTokenizer>(files, options);
}

}  // namespace dfm::models
