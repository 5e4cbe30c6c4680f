#include "data/media_loading.h"
#include "data/table.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMaxDownloadBytes = std::uint64_t{1} << 30;

bool is_below(const std::string& place) {
  const fs::path normal = fs::path(place).lexically_normal();
  return !normal.has_root_path() && !normal.empty() && *normal.begin() != "..";
}

bool is_url(const std::string& place) { return place.starts_with("http://") || place.starts_with("https://"); }

class TableSource : public Source {
 public:
  TableSource(std::unique_ptr<Table> table, const SourceOptions& options, formats::HubSettings network,
              bool is_foreign);
  [[nodiscard]] std::size_t size() const override { return table_->num_rows(); }
  [[nodiscard]] std::string name(std::size_t index) const override { return table_->row_name(index); }
  [[nodiscard]] SourceItem item(std::size_t index) const override;
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const override;
  [[nodiscard]] SourceMedia load(std::size_t index, const LoadLimits& limits) const override;
  [[nodiscard]] std::string description() const override {
    return fmt::format("{}: {} rows, {} from column {}, captions from column {}", table_->name(), table_->num_rows(),
                       is_clip_ ? "clips" : "pictures", columns_.image, columns_.caption);
  }
  [[nodiscard]] std::string default_encoder() const override { return ""; }

 private:
  // Bytes, a file or a URL.
  struct Found {
    Media media;
    std::string url;
  };
  [[nodiscard]] Found find(std::size_t row) const;
  [[nodiscard]] std::optional<fs::path> find_file(std::size_t row, const std::string& place) const;
  void check_network() const;

  std::unique_ptr<Table> table_;
  formats::HubSettings network_;
  bool is_foreign_;  // places must lie below the table's folder
  TableColumns columns_;
  bool holds_places_ = false;  // the image column: text, no bytes
  bool is_clip_ = false;       // what the first row is
};

TableSource::TableSource(std::unique_ptr<Table> table, const SourceOptions& options, formats::HubSettings network,
                         bool is_foreign)
    : table_(std::move(table)),
      network_(std::move(network)),
      is_foreign_(is_foreign),
      columns_(choose_columns(table_->name(), table_->columns(), options.image_column, options.caption_column)) {
  for (const Table::Column& column : table_->columns()) {
    holds_places_ = holds_places_ || (column.name == columns_.image && column.kind == Table::Column::Kind::kText);
  }
  if (table_->num_rows() == 0) throw DataError("{}: got no row, want at least one", table_->name());
  if (network_.offline) check_network();
  try {
    const Found first = find(0);
    is_clip_ = (first.url.empty() ? first.media.kind : kind_of_name(first.url)) == MediaKind::kClip;
  } catch (const DataError&) {
    // is said when the row's turn comes
  }
}

void TableSource::check_network() const {
  for (std::size_t row = 0; row < size(); ++row) {
    try {
      if (find(row).url.empty()) return;
    } catch (const DataError&) {
      return;
    }
  }
  throw DataError("{}: got only URLs in column {}, want pictures or files, since HF_HUB_OFFLINE allows no download",
                  table_->name(), columns_.fallback.empty() ? columns_.image : columns_.fallback);
}

SourceItem TableSource::item(std::size_t index) const {
  const std::string name = table_->row_name(index);
  const Table::Cell cell = table_->read(index, columns_.caption);
  return {name, cell.bytes ? clean_caption(*cell.bytes, name + ": " + columns_.caption) : std::nullopt, is_clip_};
}

// WebVid's clips lie in folders by page, with or without `videos` above, or all in one folder.
std::optional<fs::path> TableSource::find_file(std::size_t row, const std::string& place) const {
  const fs::path folder = table_->folder(row);
  std::vector<fs::path> candidates{folder / place};
  if (columns_.image == kWebVidPlace) {
    const fs::path file = fs::path(place).filename();
    candidates.insert(candidates.end(), {folder / "videos" / place, folder / "videos" / file, folder / file});
  }
  for (const fs::path& candidate : candidates) {
    std::error_code ignored;
    if (fs::is_regular_file(candidate, ignored)) return candidate;
  }
  return std::nullopt;
}

TableSource::Found TableSource::find(std::size_t row) const {
  Table::Cell cell = table_->read(row, columns_.image);
  if (!holds_places_ && cell.bytes && !cell.bytes->empty()) {
    return {media_bytes(table_->row_name(row), std::move(*cell.bytes)), ""};
  }
  const std::string place = holds_places_ ? cell.bytes.value_or("") : cell.path;
  if (is_url(place)) return {{}, place};
  const bool may_be_read = !is_foreign_ || is_below(place);
  if (!place.empty() && may_be_read) {
    if (const std::optional<fs::path> file = find_file(row, place)) return {media_file(*file), ""};
  }
  if (!columns_.fallback.empty()) {
    const std::string url = table_->read(row, columns_.fallback).bytes.value_or("");
    if (is_url(url)) return {{}, url};
  }
  if (place.empty()) {
    throw DataError("{}: got nothing in column {}, want a picture or the place of one", table_->row_name(row),
                    columns_.image);
  }
  if (!may_be_read) {
    throw DataError("{}: got {} in column {}, want a place inside the downloaded data set", table_->row_name(row),
                    place, columns_.image);
  }
  throw DataError("{}: got no file {}, want the one that column {} names", table_->row_name(row),
                  (table_->folder(row) / place).string(), columns_.image);
}

std::int64_t TableSource::num_pixels(std::size_t index, const LoadLimits& limits) const {
  try {
    const Found found = find(index);
    return found.url.empty() ? num_media_pixels(found.media, limits) : 0;  // nothing is downloaded to learn a size
  } catch (const DataError&) {
    return 0;  // load() says why
  }
}

SourceMedia TableSource::load(std::size_t index, const LoadLimits& limits) const {
  Found found = find(index);
  if (found.url.empty()) return load_media(found.media, limits);
  const std::string name = table_->row_name(index) + ": " + found.url;
  return load_media(
      media_bytes(name, with_context(table_->row_name(index),
                                     [&] { return formats::http_get(found.url, network_, kMaxDownloadBytes); })),
      limits);
}

}  // namespace

std::unique_ptr<Source> make_table_source(std::unique_ptr<Table> table, const SourceOptions& options,
                                          const formats::HubSettings& network, bool is_foreign) {
  return std::make_unique<TableSource>(std::move(table), options, network, is_foreign);
}

}  // namespace dfm::data
