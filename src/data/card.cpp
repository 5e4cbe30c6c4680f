#include "dfm/data/card.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::data {
namespace {

constexpr int kVersion = 1;

// The fields of the file, in its order.
template <typename Card, typename Visit>
void for_each_field(Card& card, Visit&& visit) {
  visit("tokenizer", card.tokenizer);
  visit("text_encoder", card.text_encoder);
  visit("latent_channels", card.latent_channels);
  visit("temporal_compression", card.temporal_compression);
  visit("spatial_compression", card.spatial_compression);
  visit("text_width", card.text_width);
  visit("num_samples", card.num_samples);
  visit("num_images", card.num_images);
  visit("num_clips", card.num_clips);
  visit("num_without_caption", card.num_without_caption);
  visit("num_skipped", card.num_skipped);
  visit("fps", card.fps);
  visit("source", card.source);
  visit("settings", card.settings);
  visit("dfm_version", card.dfm_version);
}

// Of tokenizers that have statistics; other cards do not hold them.
template <typename Card, typename Visit>
void for_each_statistic(Card& card, Visit&& visit) {
  visit("latent_statistics_frames", card.latent_statistics_frames);
  visit("latent_mean", card.latent_mean);
  visit("latent_std", card.latent_std);
}

void check_statistics(const DatasetCard& card, const std::string& where) {
  constexpr std::int64_t kMostFrames = 1 << 16;
  const std::int64_t frames = card.latent_statistics_frames;
  if (frames < 0 || frames > kMostFrames || card.latent_channels > kMostFrames) {
    throw DataError("{}: got latent_statistics_frames {} of {} channels, want 0 to {}", where, frames,
                    card.latent_channels, kMostFrames);
  }
  const auto count = static_cast<std::size_t>(card.latent_channels * frames);
  if (card.latent_mean.size() != count || card.latent_std.size() != count) {
    throw DataError("{}: got {} numbers in latent_mean and {} in latent_std, want {} (channels x frames)", where,
                    card.latent_mean.size(), card.latent_std.size(), count);
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isfinite(card.latent_mean[i]) && std::isfinite(card.latent_std[i]) && card.latent_std[i] > 0) continue;
    throw DataError("{}: got latent_mean {} with latent_std {}, want finite ones, the second above 0", where,
                    card.latent_mean[i], card.latent_std[i]);
  }
}

// "CV4x8x8" of "nvidia/CV4x8x8", "./CV4x8x8/".
std::string last_part(std::string name) {
  while (name.size() > 1 && name.ends_with('/')) name.pop_back();
  return name.substr(name.rfind('/') + 1);
}

template <typename T>
std::string difference(const char* what, const T& got, const T& want) {
  return got == want ? "" : fmt::format("{} {}, want {} as", what, got, want);
}

}  // namespace

std::string to_json(const DatasetCard& card) {
  nlohmann::ordered_json json;
  json["format_version"] = kVersion;
  const auto write = [&](const char* name, const auto& value) { json[name] = value; };
  for_each_field(card, write);
  if (card.latent_statistics_frames > 0) for_each_statistic(card, write);
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

DatasetCard card_from_json(const std::string& json, const std::string& where) {
  const nlohmann::json parsed = nlohmann::json::parse(json, nullptr, false);
  if (!parsed.is_object()) throw DataError("{}: got text that is no JSON object, want a data set's card", where);
  const auto version = parsed.find("format_version");
  if (version == parsed.end() || !version->is_number_integer() || *version != kVersion) {
    throw DataError("{}: got format_version {}, want {}; hint: prepare the data set with this version of dfm", where,
                    version == parsed.end() ? "nothing" : version->dump(), kVersion);
  }
  DatasetCard card;
  const auto read = [&](const char* name, auto& value) {
    const auto found = parsed.find(name);
    if (found == parsed.end()) throw DataError("{}: got no \"{}\", want one", where, name);
    try {
      found->get_to(value);
    } catch (const nlohmann::json::exception&) {
      throw DataError("{}: got {} for \"{}\", want another type", where, found->dump(), name);
    }
  };
  for_each_field(card, read);
  if (parsed.contains("latent_statistics_frames")) for_each_statistic(card, read);
  if (card.latent_channels < 1 || card.temporal_compression < 1 || card.spatial_compression < 1 ||
      card.text_width < 1 || card.num_samples < 0) {
    throw DataError("{}: got sizes below 1, want latent_channels, compressions and text_width above 0", where);
  }
  check_statistics(card, where);
  return card;
}

std::string encoder_conflict(const DatasetCard& got, const DatasetCard& want) {
  if (last_part(got.tokenizer) != last_part(want.tokenizer)) {
    return difference("tokenizer", got.tokenizer, want.tokenizer);
  }
  if (last_part(got.text_encoder) != last_part(want.text_encoder) && got.text_encoder != "unknown" &&
      want.text_encoder != "unknown") {
    return difference("text encoder", got.text_encoder, want.text_encoder);
  }
  for (const auto& [what, member] : {std::pair{"latent channels", &DatasetCard::latent_channels},
                                     {"temporal compression", &DatasetCard::temporal_compression},
                                     {"spatial compression", &DatasetCard::spatial_compression},
                                     {"text width", &DatasetCard::text_width}}) {
    if (std::string text = difference(what, got.*member, want.*member); !text.empty()) return text;
  }
  if (got.latent_statistics_frames != want.latent_statistics_frames || got.latent_mean != want.latent_mean ||
      got.latent_std != want.latent_std) {
    return "other latent statistics (latent_mean, latent_std), want those";
  }
  return "";
}

std::optional<DatasetCard> load_card(const std::filesystem::path& dataset_folder) {
  const std::filesystem::path path = dataset_folder / DatasetCard::kFileName;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  return card_from_json(read_text_file(path), path.string());
}

}  // namespace dfm::data
