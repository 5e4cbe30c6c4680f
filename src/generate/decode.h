#pragma once
// From a latent to a file, frame by frame.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>

#include "dfm/data/latent_scale.h"
#include "dfm/models/encoders.h"

namespace dfm::generate {

// The tokenizer's own latent, float32, of one that was sampled: by sigma_data, then by the data set's statistics.
at::Tensor raw_latent(const at::Tensor& sampled_CTHW, const data::LatentScale& scale);

struct DecodedVideo {
  std::int64_t height = 0, width = 0, frames = 0;
};

// Decodes [C, t, h, w], the tokenizer's own latents, into a PNG (one latent frame) or an MP4. Frames are written as the
// tokenizer gives them; the file has its name when it is whole.
DecodedVideo decode_to_file(const models::VideoTokenizer& tokenizer, const at::Tensor& latent_CTHW,
                            const std::filesystem::path& path, double fps);

}  // namespace dfm::generate
