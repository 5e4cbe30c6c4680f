#include "dfm/data/card.h"

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

}  // namespace

std::string to_json(const DatasetCard& card) {
  nlohmann::ordered_json json;
  json["format_version"] = kVersion;
  for_each_field(card, [&](const char* name, const auto& value) { json[name] = value; });
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
  for_each_field(card, [&](const char* name, auto& value) {
    const auto found = parsed.find(name);
    if (found == parsed.end()) throw DataError("{}: got no \"{}\", want one", where, name);
    try {
      found->get_to(value);
    } catch (const nlohmann::json::exception&) {
      throw DataError("{}: got {} for \"{}\", want another type", where, found->dump(), name);
    }
  });
  if (card.latent_channels < 1 || card.temporal_compression < 1 || card.spatial_compression < 1 ||
      card.text_width < 1 || card.num_samples < 0) {
    throw DataError("{}: got sizes below 1, want latent_channels, compressions and text_width above 0", where);
  }
  return card;
}

std::optional<DatasetCard> load_card(const std::filesystem::path& dataset_folder) {
  const std::filesystem::path path = dataset_folder / DatasetCard::kFileName;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return std::nullopt;
  return card_from_json(read_text_file(path), path.string());
}

}  // namespace dfm::data
