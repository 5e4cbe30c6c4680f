#pragma once
// Options of `dfm prepare`. Flags are the field names with dashes: --short-side.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "dfm/config/schema.h"

namespace dfm::prepare {

struct PrepareOptions {
  std::string input;
  std::filesystem::path output_dir;
  std::optional<std::string> tokenizer;
  std::optional<std::string> text_encoder;
  std::optional<std::int64_t> short_side;
  std::int64_t num_video_frames = 121;
  std::optional<double> fps;
  std::int64_t num_workers = 2;
  std::int64_t shard_max_count = 10000;
  std::int64_t shard_max_bytes = std::int64_t{256} << 20;
  bool require_captions = false;
  std::uint64_t seed = 1234;

  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<PrepareOptions>(
        field("input", &PrepareOptions::input, "Folder of pictures and clips, or synthetic:butterflies[:COUNT]",
              config::not_empty),
        field("output_dir", &PrepareOptions::output_dir, "Folder for the webdataset; a stopped run there is continued",
              config::not_empty),
        field("tokenizer", &PrepareOptions::tokenizer, "Video tokenizer: builtin (weightless)"),
        field("text_encoder", &PrepareOptions::text_encoder, "Text encoder: builtin (weightless)"),
        field("short_side", &PrepareOptions::short_side,
              "Pixels of the shorter side after resizing; both sides are then cut to multiples of 16; default: 512, "
              "synthetic pictures 96",
              positive),
        field("num_video_frames", &PrepareOptions::num_video_frames, "Most frames of a clip; clips are cut to 1 + 4 n",
              positive),
        field("fps", &PrepareOptions::fps, "Frames a second to sample clips at; default: each clip's own", positive),
        field("num_workers", &PrepareOptions::num_workers, "Threads that decode, encode and write", positive),
        field("shard_max_count", &PrepareOptions::shard_max_count, "Most samples in a shard", positive),
        field("shard_max_bytes", &PrepareOptions::shard_max_bytes,
              "Most bytes of samples in a shard: what a stopped run may lose", positive),
        field("require_captions", &PrepareOptions::require_captions,
              "A missing or blank caption is an error, not the empty text"),
        field("seed", &PrepareOptions::seed, "Key of synthetic data"));
  }
};

}  // namespace dfm::prepare
