#pragma once
// The data set's card, dfm_dataset.json: how it was made. Train copies it into the checkpoint, generate takes encoders
// from there.
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace dfm::data {

struct DatasetCard {
  static constexpr const char* kFileName = "dfm_dataset.json";
  std::string tokenizer = "builtin";
  std::string text_encoder = "builtin";
  std::int64_t latent_channels = 16, temporal_compression = 4, spatial_compression = 8;
  std::int64_t text_width = 1024;
  // Of tokenizers that have them (models::LatentStatistics): what train and generate apply. Stored latents are raw.
  std::int64_t latent_statistics_frames = 0;
  std::vector<double> latent_mean, latent_std;  // [latent_channels * latent_statistics_frames], channel-major
  std::int64_t num_samples = 0, num_images = 0, num_clips = 0;
  std::int64_t num_without_caption = 0, num_skipped = 0;
  double fps = 0;                               // the most common of the clips; 0 when there is none
  std::string source;                           // what --input was
  std::map<std::string, std::string> settings;  // short_side, num_video_frames, fps ... as given
  std::string dfm_version;
};

std::string to_json(const DatasetCard& card);
DatasetCard card_from_json(const std::string& json, const std::string& where);
std::optional<DatasetCard> load_card(const std::filesystem::path& dataset_folder);

// Why latents and texts of one data set cannot stand for those of another, "" when they can: "tokenizer A, want B as".
// Names agree when their last parts do (a hub id and a folder of that name); a text encoder "unknown" (of a foreign
// folder) agrees with any of its width.
std::string encoder_conflict(const DatasetCard& got, const DatasetCard& want);

}  // namespace dfm::data
