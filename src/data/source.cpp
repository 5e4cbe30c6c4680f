#include "dfm/data/source.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "data/folder_listing.h"
#include "data/hub_files.h"
#include "data/media_folder_source.h"
#include "data/raw_webdataset_source.h"
#include "data/synthetic_butterflies.h"
#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/formats/hub.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSyntheticPrefix = "synthetic:";
constexpr std::string_view kButterflies = "butterflies";
constexpr std::size_t kDefaultButterflies = 1600;
constexpr std::size_t kMaxButterflies = 1'000'000'000;

std::unique_ptr<Source> open_synthetic(const std::string& input, std::uint64_t seed) {
  std::string_view rest = std::string_view(input).substr(kSyntheticPrefix.size());
  const std::size_t colon = rest.find(':');
  if (rest.substr(0, colon) != kButterflies) {
    throw ConfigError("--input: got {}, want synthetic:butterflies[:COUNT] or a folder; hint: synthetic:butterflies",
                      input);
  }
  if (colon == std::string_view::npos) return make_synthetic_butterflies(seed, kDefaultButterflies);
  rest.remove_prefix(colon + 1);
  std::size_t count = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
  if (error != std::errc() || end != rest.data() + rest.size() || count < 1 || count > kMaxButterflies) {
    throw ConfigError("--input: got {}, want a count from 1 to {} after synthetic:butterflies:", input,
                      kMaxButterflies);
  }
  return make_synthetic_butterflies(seed, count);
}

std::vector<NamedFile> in_folder(const fs::path& folder, const std::vector<std::string>& names) {
  std::vector<NamedFile> files;
  for (const std::string& name : names) files.push_back({name, folder / name});
  return files;
}

std::string count_of(const std::vector<std::string>& names, const char* what) {
  return fmt::format("{} {} file{}", names.size(), what, names.size() == 1 ? "" : "s");
}

formats::HubSettings network_of(const SourceOptions& options) {
  return formats::HubSettings::from_environment(options.hub_cache);
}

// Pictures and clips win over tables and tars that lie among them.
std::unique_ptr<Source> open_listing(const std::string& name, const fs::path& folder, FolderListing listing,
                                     const SourceOptions& options, bool is_foreign) {
  const bool has_media = !listing.media.empty();
  if (has_media && listing.parquet.size() + listing.tars.size() > 0) {
    log::warning("data", "{}: got {} tars and parquet files beside pictures or clips, which alone are read", name,
                 listing.parquet.size() + listing.tars.size());
  }
  if (!has_media && !listing.parquet.empty()) {
    const std::string table = fmt::format("{} ({})", name, count_of(listing.parquet, "parquet"));
    return make_table_source(open_parquet_table(table, in_folder(folder, listing.parquet)), options,
                             network_of(options), is_foreign);
  }
  if (!has_media && !listing.tars.empty()) {
    return open_raw_webdataset(name, in_folder(folder, listing.tars), options);
  }
  if (!has_media && !listing.csv.empty()) {
    const std::string table = fmt::format("{} ({})", name, count_of(listing.csv, "csv"));
    return make_table_source(open_csv_table(table, in_folder(folder, listing.csv)), options, network_of(options),
                             is_foreign);
  }
  if (!has_media && !listing.compressed_tars.empty()) {
    throw DataError("{}: got a compressed tar, want plain ones, which can be read from any place; hint: gunzip it",
                    (folder / listing.compressed_tars[0]).string());
  }
  return open_media_folder(name, folder, std::move(listing), options);
}

std::unique_ptr<Source> open_file(const fs::path& path, const SourceOptions& options) {
  const std::string extension = path.extension().string();
  const std::vector<NamedFile> files{{path.filename().string(), path}};
  if (extension == ".parquet") {
    return make_table_source(open_parquet_table(path.string(), files), options, network_of(options), false);
  }
  if (extension == ".csv") {
    return make_table_source(open_csv_table(path.string(), files), options, network_of(options), false);
  }
  if (extension == ".tar") return open_raw_webdataset(path.string(), files, options);
  throw DataError("{}: got a file, want a folder of pictures and clips, or a file that ends in .parquet, .csv or .tar",
                  path.string());
}

// Names of hub data sets have the form org/name; so has many a path.
bool is_hub_input(const std::string& input) {
  return !input.starts_with(kSyntheticPrefix) && !fs::exists(input) && input.find('/') != std::string::npos &&
         formats::is_hub_id(input);
}

HubFiles fetch_files(const SourceOptions& options) {
  return with_context(
      fmt::format("{}: got no such file or folder here, want it or a data set of the hub", options.input),
      [&] { return fetch_hub_files(formats::Hub(network_of(options)), options.input); });
}

// What DFM's own script takes of its data set.
SourceOptions with_columns_of_dfm(SourceOptions options) {
  if (options.input == "huggan/smithsonian_butterflies_subset") {
    if (options.image_column.empty()) options.image_column = "image";
    if (options.caption_column.empty()) options.caption_column = "name";
  }
  return options;
}

}  // namespace

std::unique_ptr<Source> open_source(const SourceOptions& options) {
  const std::string& input = options.input;
  if (input.starts_with(kSyntheticPrefix)) return open_synthetic(input, options.seed);
  if (is_hub_input(input)) {
    HubFiles files = fetch_files(options);
    return open_listing(input, files.folder, std::move(files.listing), with_columns_of_dfm(options), true);
  }
  if (!fs::exists(input)) {
    throw DataError(
        "{}: got no such file or folder, want pictures or clips; hint: a data set of the hub is named "
        "org/name",
        input);
  }
  if (!fs::is_directory(input)) return open_file(input, options);
  return open_listing(input, input, list_folder(input), options, false);
}

void fetch_source(const SourceOptions& options) {
  if (is_hub_input(options.input)) static_cast<void>(fetch_files(options));
}

Size target_size(std::int64_t height, std::int64_t width, const LoadLimits& limits) {
  const std::int64_t multiple = limits.side_multiple;
  if (limits.short_side < multiple) {
    throw ConfigError("--short-side: got {}, want at least {}", limits.short_side, multiple);
  }
  const double scale = static_cast<double>(limits.short_side) / static_cast<double>(std::min(height, width));
  const auto side = [&](std::int64_t pixels) {
    const auto scaled = std::llround(static_cast<double>(pixels) * scale);
    return std::max<std::int64_t>(multiple, scaled / multiple * multiple);
  };
  return {side(height), side(width)};
}

}  // namespace dfm::data
