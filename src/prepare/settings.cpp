#include "prepare/settings.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"

namespace dfm::prepare {
namespace {

constexpr const char* kBuiltin = "builtin";
constexpr const char* kDefaultTokenizer = "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8";  // the tutorial's
constexpr const char* kDefaultTextEncoder = "google-t5/t5-11b";

// Drawn butterflies are simple: the size at which a small model learns them, and soon.
constexpr std::int64_t kShortSide = 512;
constexpr std::int64_t kSyntheticShortSide = 96;

bool is_synthetic(const std::string& input) { return input.starts_with("synthetic:"); }

// A path that exists is absolute in settings; hub ids and names stay as they are.
std::string lasting(const std::string& name) {
  std::error_code ignored;
  if (is_synthetic(name) || !std::filesystem::exists(name, ignored)) return name;
  const std::filesystem::path path = std::filesystem::weakly_canonical(name, ignored);
  return ignored ? name : path.string();
}

std::string encoder_of(const PrepareOptions& options, const std::optional<std::string>& chosen, const char* otherwise) {
  if (!chosen) return is_synthetic(options.input) ? kBuiltin : otherwise;
  return *chosen == kBuiltin ? *chosen : lasting(*chosen);
}

}  // namespace

std::int64_t short_side_of(const PrepareOptions& options) {
  return options.short_side.value_or(is_synthetic(options.input) ? kSyntheticShortSide : kShortSide);
}

std::int64_t num_workers_of(const PrepareOptions& options) {
  constexpr std::int64_t kLeast = 2, kMost = 16;
  return options.num_workers.value_or(std::clamp<std::int64_t>(at::get_num_threads(), kLeast, kMost));
}

data::SourceOptions source_options(const PrepareOptions& options) {
  return {.input = options.input,
          .seed = options.seed,
          .image_column = options.image_column,
          .caption_column = options.caption_column,
          .hub_cache = options.hub_cache};
}

std::string tokenizer_of(const PrepareOptions& options) {
  return encoder_of(options, options.tokenizer, kDefaultTokenizer);
}

std::string text_encoder_of(const PrepareOptions& options) {
  return encoder_of(options, options.text_encoder, kDefaultTextEncoder);
}

std::filesystem::path tokenizer_cache(const PrepareOptions& options) {
  return options.tokenizer_cache_dir.empty() ? options.hub_cache : options.tokenizer_cache_dir;
}

std::filesystem::path text_encoder_cache(const PrepareOptions& options) {
  return options.t5_cache_dir.empty() ? options.hub_cache : options.t5_cache_dir;
}

Settings make_settings(const PrepareOptions& options, bool is_on_gpu) {
  Settings settings;
  settings["input"] = lasting(options.input);
  settings["tokenizer"] = tokenizer_of(options);
  settings["text_encoder"] = text_encoder_of(options);
  if (settings["tokenizer"] != kBuiltin || settings["text_encoder"] != kBuiltin) {
    const auto automatic = is_on_gpu ? models::Precision::kBf16 : models::Precision::kFp32;
    settings["precision"] =
        config::enum_name(options.precision == models::Precision::kAuto ? automatic : options.precision);
  }
  if (!options.image_column.empty()) settings["image_column"] = options.image_column;
  if (!options.caption_column.empty()) settings["caption_column"] = options.caption_column;
  settings["short_side"] = fmt::to_string(short_side_of(options));
  settings["num_video_frames"] = fmt::to_string(options.num_video_frames);
  settings["fps"] = options.fps ? fmt::to_string(*options.fps) : "each clip's own";
  settings["shard_max_count"] = fmt::to_string(options.shard_max_count);
  settings["shard_max_bytes"] = fmt::to_string(options.shard_max_bytes);
  if (is_synthetic(options.input)) settings["seed"] = fmt::to_string(options.seed);
  settings["dfm_version"] = DFM_VERSION;
  return settings;
}

std::string describe_media(const data::Source& source) {
  std::uint64_t hash = fnv1a64("");
  for (std::size_t i = 0; i < source.size(); ++i) {
    try {
      const data::SourceItem item = source.item(i);
      hash = fnv1a64(item.name, hash);
      hash = fnv1a64(item.caption ? "\ncaption " + *item.caption + "\n" : "\nno caption\n", hash);
    } catch (const Error&) {
      hash = fnv1a64("\nunreadable caption\n", hash);  // the item is skipped when its turn comes
    }
  }
  return fmt::format("{} items {:016x}", source.size(), hash);
}

std::string describe_view(const Settings& settings, const data::Source& source) {
  std::string text;
  for (const auto& [name, value] : settings) text += fmt::format("{} {}\n", name, value);
  std::uint64_t hash = fnv1a64("");
  for (std::size_t i = 0; i < source.size(); ++i) hash = fnv1a64(source.name(i) + "\n", hash);
  return text + fmt::format("items {}\nnames of items {:016x}\n", source.size(), hash);
}

std::string describe_differences(const Settings& before, const Settings& now) {
  std::string text;
  const auto value_of = [](const Settings& settings, const std::string& name) {
    const auto found = settings.find(name);
    return found == settings.end() ? std::string("nothing") : found->second;
  };
  Settings all = before;
  all.insert(now.begin(), now.end());
  for (const auto& [name, ignored] : all) {
    const std::string was = value_of(before, name), is = value_of(now, name);
    if (was != is) text += fmt::format("{}{} {}, now {}", text.empty() ? "" : "; ", name, was, is);
  }
  return text;
}

}  // namespace dfm::prepare
