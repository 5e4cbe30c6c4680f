#include "prepare/encoder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "dfm/base/error.h"

namespace dfm::prepare {

Encoder::Encoder(const data::Source& source, const PrepareOptions& options, const Settings& settings, at::Device device)
    : source_(source),
      device_(device),
      tokenizer_(models::make_tokenizer(settings.at("tokenizer"), device)),
      text_encoder_(models::make_text_encoder(settings.at("text_encoder"), device)),
      texts_(*text_encoder_) {
  limits_.short_side = short_side_of(options);
  limits_.num_video_frames = options.num_video_frames;
  limits_.fps = options.fps;
  limits_.temporal_compression = tokenizer_->temporal_compression();
  limits_.side_multiple = 2 * tokenizer_->spatial_compression();
  if (limits_.short_side < limits_.side_multiple) {
    throw ConfigError("--short-side: got {}, want at least {}", limits_.short_side, limits_.side_multiple);
  }
}

Result Encoder::run(std::uint64_t index) {
  const c10::InferenceMode inference;
  at::set_num_threads(1);  // of this thread: the workers fill the cores
  Result result;
  result.skipped.name = fmt::format("item {}", index);
  try {
    const data::SourceItem item = source_.item(index);
    result.skipped.name = item.name;
    result.has_caption = item.caption.has_value();
    result.parts = encode(index, item);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    result.skipped.reason = error.what();
  }
  return result;
}

data::SampleParts Encoder::encode(std::uint64_t index, const data::SourceItem& item) {
  const data::SourceMedia media = source_.load(index, limits_);
  const at::Tensor rgb_CTHW = media.rgb_THW3.to(device_).permute({3, 0, 1, 2});
  // One copy straight into the layout that encoders want: a clip's pixels take hundreds of megabytes.
  at::Tensor pixels_CTHW = at::empty(rgb_CTHW.sizes(), rgb_CTHW.options().dtype(at::kFloat));
  pixels_CTHW.copy_(rgb_CTHW).div_(127.5).sub_(1.0);
  data::SampleDescription description;
  description.fps = media.fps;
  description.caption = item.caption.value_or("");
  description.source = item.name;
  description.num_frames = media.rgb_THW3.size(0);
  description.image_height = media.rgb_THW3.size(1);
  description.image_width = media.rgb_THW3.size(2);
  description.original_height = media.original_height;
  description.original_width = media.original_width;
  return data::make_sample_parts(data::sample_key(index), tokenizer_->encode(pixels_CTHW),
                                 texts_.encode(description.caption), description);
}

}  // namespace dfm::prepare
