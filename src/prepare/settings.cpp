#include "prepare/settings.h"

#include <filesystem>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"

namespace dfm::prepare {
namespace {

constexpr const char* kDefaultTokenizer = "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8";  // the tutorial's
constexpr const char* kDefaultTextEncoder = "google-t5/t5-11b";

// Drawn butterflies are simple: the size at which a small model learns them, and soon.
constexpr std::int64_t kShortSide = 512;
constexpr std::int64_t kSyntheticShortSide = 96;

bool is_synthetic(const std::string& input) { return input.starts_with("synthetic:"); }

}  // namespace

std::int64_t short_side_of(const PrepareOptions& options) {
  return options.short_side.value_or(is_synthetic(options.input) ? kSyntheticShortSide : kShortSide);
}

Settings make_settings(const PrepareOptions& options, const data::Source& source) {
  const std::string encoder = source.default_encoder();
  Settings settings;
  settings["input"] =
      is_synthetic(options.input) ? options.input : std::filesystem::weakly_canonical(options.input).string();
  settings["tokenizer"] = options.tokenizer.value_or(encoder.empty() ? kDefaultTokenizer : encoder);
  settings["text_encoder"] = options.text_encoder.value_or(encoder.empty() ? kDefaultTextEncoder : encoder);
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
