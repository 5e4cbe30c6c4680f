#pragma once
// Where `dfm prepare` gets pictures, clips and captions from: Hugging Face data sets and parquet files, folders of
// media (captions beside the files, or in metadata.jsonl / .csv), webdatasets of raw media, WebVid-style csv files, or
// drawn butterflies. docs/data.md.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace dfm::data {

struct LoadLimits {
  std::int64_t short_side = 512;        // pixels; the longer side keeps the shape
  std::int64_t num_video_frames = 121;  // most frames of a clip
  std::optional<double> fps;            // frames a second to sample clips at; nothing: every frame
  std::int64_t temporal_compression = 4;
  std::int64_t side_multiple = 16;
};

struct SourceItem {
  std::string name;                    // path relative to the folder, `table.parquet:00000012`, `shard.tar:key`; unique
  std::optional<std::string> caption;  // trimmed; nothing when missing or blank
  bool is_clip = false;
};

struct SourceMedia {
  // uint8, ready for the tokenizer: T = 1, or 1 + k n for clips; H and W multiples of side_multiple.
  at::Tensor rgb_THW3;
  double fps = 0;  // of the frames in rgb_THW3; 0 for pictures and where it is unknown
  std::int64_t original_height = 0, original_width = 0;
  std::int64_t original_frames = 1;  // as the file says; 0 where it does not
};

class Source {
 public:
  virtual ~Source() = default;
  [[nodiscard]] virtual std::size_t size() const = 0;
  [[nodiscard]] virtual std::string name(std::size_t index) const = 0;  // item(index).name, without reading a file
  [[nodiscard]] virtual SourceItem item(std::size_t index) const = 0;
  // Thread safe. Pixels that load() would give, all frames together, from the headers alone: what an item costs to
  // encode. 0 where they do not tell, or are damaged.
  [[nodiscard]] virtual std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const = 0;
  // Thread safe. Damaged media is a DataError that names the file.
  [[nodiscard]] virtual SourceMedia load(std::size_t index, const LoadLimits& limits) const = 0;
  [[nodiscard]] virtual std::string description() const = 0;  // one line: "folder data: 3 pictures, 2 clips"
  // What the tokenizer and text encoder are when the user names none ("builtin"); empty: the tutorial's.
  [[nodiscard]] virtual std::string default_encoder() const = 0;
};

struct SourceOptions {
  // Tried in this order: `synthetic:butterflies[:COUNT]`; a path that exists (folder, .parquet, .csv, .tar); a hub data
  // set's id (huggan/smithsonian_butterflies_subset).
  std::string input;
  std::uint64_t seed = 1234;        // of synthetic data
  std::string image_column;         // of tables; empty: the one there is (DFM's choice for its data set)
  std::string caption_column;       // likewise
  std::filesystem::path hub_cache;  // replaces the hub's cache folder; empty: the usual one
};

// Nothing to read, missing columns (the message lists what there is) and broken files are a DataError, an unknown
// synthetic name a ConfigError.
std::unique_ptr<Source> open_source(const SourceOptions& options);

// Downloads what open_source() will open, if it is a hub data set and not there yet. Before ranks have met: it may take
// longer than their patience.
void fetch_source(const SourceOptions& options);

// Height and width that `limits` give a picture: the short side becomes short_side, then both are rounded down to
// multiples of side_multiple. One resize goes straight there; the shape changes by less than a multiple.
struct Size {
  std::int64_t height = 0, width = 0;
};
Size target_size(std::int64_t height, std::int64_t width, const LoadLimits& limits);

}  // namespace dfm::data
