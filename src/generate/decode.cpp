#include "generate/decode.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "dfm/base/error.h"
#include "dfm/diffusion/edm.h"
#include "dfm/formats/media.h"

namespace dfm::generate {
namespace {

// uint8 [T, H, W, 3] on the CPU, a few frames at a time: a tokenizer may bring the whole clip at once.
at::Tensor to_rgb(const at::Tensor& pixels_CTHW) {
  constexpr std::int64_t kFramesAtOnce = 8;
  const std::int64_t frames = pixels_CTHW.size(1);
  const at::Tensor rgb = at::empty({frames, pixels_CTHW.size(2), pixels_CTHW.size(3), 3}, at::kByte);
  for (std::int64_t t = 0; t < frames; t += kFramesAtOnce) {
    const std::int64_t n = std::min(kFramesAtOnce, frames - t);
    const at::Tensor part =
        pixels_CTHW.narrow(1, t, n).to(at::kFloat).add(1).mul_(127.5).round_().clamp_(0, 255).to(at::kByte);
    rgb.narrow(0, t, n).copy_(part.permute({1, 2, 3, 0}));
  }
  return rgb;
}

}  // namespace

at::Tensor raw_latent(const at::Tensor& sampled_CTHW, const data::LatentScale& scale) {
  return scale.denormalise((sampled_CTHW / diffusion::kSigmaData).to(at::kFloat));
}

DecodedVideo decode_to_file(const models::VideoTokenizer& tokenizer, const at::Tensor& latent_CTHW,
                            const std::filesystem::path& path, double fps) {
  DecodedVideo video;
  at::Tensor picture_HW3;
  std::optional<formats::Mp4Writer> writer;
  tokenizer.decode_frames(latent_CTHW, [&](const at::Tensor& pixels_CTHW) {
    const at::Tensor rgb_THW3 = to_rgb(pixels_CTHW);
    video.height = rgb_THW3.size(1);
    video.width = rgb_THW3.size(2);
    video.frames += rgb_THW3.size(0);
    if (latent_CTHW.size(1) == 1) {
      picture_HW3 = rgb_THW3[0];
      return;
    }
    if (!writer) writer.emplace(path, video.height, video.width, formats::Mp4Options{.fps = fps});
    writer->add(rgb_THW3);
  });
  const std::int64_t want = 1 + (latent_CTHW.size(1) - 1) * tokenizer.temporal_compression();
  if (video.frames != want) {
    throw InternalError("{}: got {} frames from the tokenizer, want {}", path.string(), video.frames, want);
  }
  if (writer) {
    writer->close();
  } else {
    formats::write_png(path, picture_HW3);
  }
  return video;
}

}  // namespace dfm::generate
