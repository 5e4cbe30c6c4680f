#include "data/media_folder_source.h"

#include <algorithm>

#include "data/media_loading.h"
#include "data/metadata_captions.h"
#include "dfm/base/error.h"
#include "dfm/base/log.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

class MediaFolderSource : public Source {
 public:
  MediaFolderSource(std::string name, fs::path folder, FolderListing listing, const SourceOptions& options);
  [[nodiscard]] std::size_t size() const override { return names_.size(); }
  [[nodiscard]] std::string name(std::size_t index) const override { return names_.at(index); }
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const override {
    return num_media_pixels(media_file(folder_ / names_.at(index)), limits);
  }
  [[nodiscard]] SourceItem item(std::size_t index) const override {
    const std::string& name = names_.at(index);
    return {name, caption_of(name), kind_of_name(name) == MediaKind::kClip};
  }
  [[nodiscard]] SourceMedia load(std::size_t index, const LoadLimits& limits) const override {
    return load_media(media_file(folder_ / names_.at(index)), limits);
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("folder {}: {} pictures, {} clips", name_, names_.size() - num_clips_, num_clips_);
  }
  [[nodiscard]] std::string default_encoder() const override { return ""; }

 private:
  [[nodiscard]] std::optional<std::string> caption_of(const std::string& name) const {
    const auto row = metadata_.rows().find(name);
    if (row == metadata_.rows().end()) return read_caption_beside(folder_ / name);
    const auto& [text, where] = row->second;
    return text ? clean_caption(*text, where) : std::nullopt;
  }
  void warn_of_missing_files() const;

  std::string name_;
  fs::path folder_;
  std::vector<std::string> names_;  // relative, sorted by bytes
  MetadataCaptions metadata_;
  std::size_t num_clips_ = 0;
};

MediaFolderSource::MediaFolderSource(std::string name, fs::path folder, FolderListing listing,
                                     const SourceOptions& options)
    : name_(std::move(name)),
      folder_(std::move(folder)),
      names_(std::move(listing.media)),
      metadata_(folder_, listing.metadata, options) {
  if (names_.empty()) {
    throw DataError("{}: got no picture and no clip, want files that end in {}, or in .parquet or .tar", name_,
                    media_extensions());
  }
  if (listing.metadata.empty() && !(options.caption_column + options.image_column).empty()) {
    throw DataError(
        "{}: got no metadata.jsonl or metadata.csv, want one with column {}; hint: captions in .txt files "
        "beside the media need no --caption-column",
        name_, options.caption_column.empty() ? options.image_column : options.caption_column);
  }
  num_clips_ = static_cast<std::size_t>(std::count_if(
      names_.begin(), names_.end(), [](const std::string& file) { return kind_of_name(file) == MediaKind::kClip; }));
  warn_of_missing_files();
}

void MediaFolderSource::warn_of_missing_files() const {
  std::size_t num_missing = 0;
  std::pair<std::string, std::string> first;  // where, file
  for (const auto& [file, row] : metadata_.rows()) {
    if (std::binary_search(names_.begin(), names_.end(), file)) continue;
    const std::pair<std::string, std::string> found{row.where, file};
    if (num_missing++ == 0 || found < first) first = found;
  }
  if (num_missing == 0) return;
  log::warning("data", "{}: {} rows name files that are no picture or clip in the folder ({}, ...)", first.first,
               num_missing, first.second);
}

}  // namespace

std::unique_ptr<Source> open_media_folder(const std::string& name, const fs::path& folder, FolderListing listing,
                                          const SourceOptions& options) {
  return std::make_unique<MediaFolderSource>(name, folder, std::move(listing), options);
}

}  // namespace dfm::data
