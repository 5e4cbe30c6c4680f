#pragma once
// The tokenizer over whole clips: cuts them into pieces (and tiles, if asked) and sends those through the network.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dfm/models/encoders.h"
#include "models/cosmos_tokenizer/network.h"

namespace dfm::models::cosmos {

// How clips are cut up. Neither changes a result beyond rounding.
struct Cuts {
  std::int64_t latent_frames = 0;  // of a piece; 0: as many as keep an activation small
  std::int64_t strip_bytes = 0;    // strips of rows make activations of about this size; 0: chosen for the device
};

class Tokenizer final : public VideoTokenizer {
 public:
  Tokenizer(std::string name, const Config& config, LatentStatistics statistics, const NamedTensors& tensors,
            const EncoderOptions& options, const std::string& where);
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] std::int64_t latent_channels() const override { return config_.latent_channels; }
  [[nodiscard]] std::int64_t temporal_compression() const override { return config_.temporal_compression; }
  [[nodiscard]] std::int64_t spatial_compression() const override { return config_.spatial_compression; }
  [[nodiscard]] LatentStatistics latent_statistics() const override { return statistics_; }
  [[nodiscard]] at::Tensor encode(const at::Tensor& pixels_CTHW) const override;
  [[nodiscard]] at::Tensor encode_batch(const at::Tensor& pixels_NCTHW) const override;
  [[nodiscard]] bool gains_from_batches() const override { return options_.device.is_cuda(); }
  [[nodiscard]] at::Tensor decode(const at::Tensor& latent_CTHW) const override;
  void decode_frames(const at::Tensor& latent_CTHW,
                     const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const override;

  [[nodiscard]] const Config& config() const { return config_; }
  void set_cuts(const Cuts& cuts) { cuts_ = cuts; }  // not while a clip is under way

 private:
  struct Tile {
    std::int64_t y, x, height, width;  // in latent pixels
  };
  [[nodiscard]] std::vector<Tile> tiles(std::int64_t height, std::int64_t width) const;
  // Latent frames of a piece, whose largest activation has `channels` channels on the patcher's grid.
  [[nodiscard]] std::int64_t piece_frames(std::int64_t clips, std::int64_t height, std::int64_t width,
                                          std::int64_t channels) const;
  [[nodiscard]] std::int64_t bytes_of_frame(std::int64_t height, std::int64_t width, std::int64_t channels) const;
  void prepare(Stream& stream) const;
  [[nodiscard]] at::Tensor encode_clips(const at::Tensor& pixels_NCTHW) const;

  std::string name_;
  Config config_;
  LatentStatistics statistics_;
  EncoderOptions options_;
  at::ScalarType dtype_;
  Encoder encoder_;
  Decoder decoder_;
  Cuts cuts_;
};

}  // namespace dfm::models::cosmos
