#include "prepare/encoders.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "prepare/texts.h"

namespace dfm::prepare {
namespace {

constexpr const char* kBuiltin = "builtin";

models::EncoderOptions encoder_options(const PrepareOptions& options, const RunContext& context) {
  return {.device = context.device,
          .precision = options.precision,
          .hub_cache = options.hub_cache,
          .offload = options.text_encoder_offload};
}

void say_loading(const RunContext& context, const std::string& what, const std::string& name) {
  if (name != kBuiltin && context.world->is_first()) log::info("prepare", "loading the {} {}", what, name);
}

// The number of pixels of a picture is not looked up: reading it costs more than it holds.
std::uint64_t bytes_of(const data::Source& source, std::uint64_t index, const data::LoadLimits& limits, bool is_clip) {
  constexpr std::int64_t kColours = 3;
  const std::int64_t picture = 2 * limits.short_side * limits.short_side;
  const std::int64_t pixels = is_clip ? std::max(picture, source.num_pixels(index, limits)) : picture;
  return static_cast<std::uint64_t>(kColours * pixels);
}

}  // namespace

Encoders load_encoders(const PrepareOptions& options, const Settings& settings, const RunContext& context,
                       bool needs_text) {
  Encoders encoders{.tokenizer = context.tokenizer, .text = needs_text ? context.text_encoder : nullptr, .turn = {}};
  models::EncoderOptions how = encoder_options(options, context);
  if (!encoders.tokenizer) {
    const std::string& name = settings.at("tokenizer");
    say_loading(context, "tokenizer", name);
    how.hub_cache = tokenizer_cache(options);
    encoders.tokenizer = with_advice(options, [&] { return models::make_tokenizer(name, how); });
  }
  if (needs_text && !encoders.text) {
    const std::string& name = settings.at("text_encoder");
    say_loading(context, "text encoder", name);
    how.hub_cache = text_encoder_cache(options);
    encoders.text =
        with_room(name, [&] { return with_advice(options, [&] { return models::make_text_encoder(name, how); }); });
  }
  if (options.text_encoder_offload) encoders.turn = std::make_shared<std::mutex>();
  return encoders;
}

data::LoadLimits load_limits(const PrepareOptions& options, const models::VideoTokenizer& tokenizer) {
  data::LoadLimits limits;
  limits.short_side = short_side_of(options);
  limits.num_video_frames = options.num_video_frames;
  limits.fps = options.fps;
  limits.temporal_compression = tokenizer.temporal_compression();
  limits.side_multiple = 2 * tokenizer.spatial_compression();
  if (limits.short_side < limits.side_multiple) {
    throw ConfigError("--short-side: got {}, want at least {}", limits.short_side, limits.side_multiple);
  }
  return limits;
}

LoadedItem ItemLoader::load(std::uint64_t number, std::uint64_t index) {
  LoadedItem loaded;
  loaded.index = index;
  loaded.name = fmt::format("item {}", index);
  try {
    const data::SourceItem item = source_.item(index);
    loaded.name = item.name;
    loaded.has_caption = item.caption.has_value();
    budget_.acquire(number, bytes_of(source_, index, limits_, item.is_clip));
    data::SourceMedia media = source_.load(index, limits_);
    data::SampleDescription& description = loaded.description;
    description.fps = media.fps;
    description.caption = item.caption.value_or("");
    description.source = item.name;
    description.num_frames = media.rgb_THW3.size(0);
    description.image_height = media.rgb_THW3.size(1);
    description.image_width = media.rgb_THW3.size(2);
    description.original_height = media.original_height;
    description.original_width = media.original_width;
    loaded.rgb_THW3 = is_pinned_ ? media.rgb_THW3.pin_memory() : std::move(media.rgb_THW3);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    loaded.problem = error.what();
    budget_.release(number);
  }
  return loaded;
}

Result make_result(const LoadedItem& item, const at::Tensor& latent_CTHW, const at::Tensor& text_LE) {
  Result result;
  result.has_caption = item.has_caption;
  result.num_frames = item.description.num_frames;
  try {
    result.parts = data::make_sample_parts(data::sample_key(item.index), latent_CTHW, text_LE, item.description);
  } catch (const DataError& error) {
    return skip(item, error.what());
  }
  return result;
}

Result skip(const LoadedItem& item, const std::string& problem) {
  Result result;
  result.skipped = {item.name, problem};
  result.has_caption = item.has_caption;
  return result;
}

}  // namespace dfm::prepare
