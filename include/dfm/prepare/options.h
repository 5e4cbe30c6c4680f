#pragma once
// Options of `dfm prepare`. Flags are the field names with dashes: --short-side.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "dfm/config/schema.h"
#include "dfm/models/encoders.h"

namespace dfm::prepare {

struct PrepareOptions {
  std::string input = "huggan/smithsonian_butterflies_subset";  // the tutorial's
  std::filesystem::path output_dir;
  std::string image_column, caption_column;
  std::optional<std::string> tokenizer;
  std::optional<std::string> text_encoder;
  models::Precision precision = models::Precision::kAuto;
  bool text_encoder_offload = false;
  std::int64_t encode_batch_pixels = std::int64_t{4} << 20;
  std::optional<std::int64_t> short_side;
  std::int64_t num_video_frames = 121;
  std::optional<double> fps;
  std::optional<std::int64_t> num_workers;
  std::int64_t shard_max_count = 10000;
  std::int64_t shard_max_bytes = std::int64_t{256} << 20;
  bool require_captions = false;
  std::uint64_t seed = 1234;
  std::filesystem::path hub_cache, t5_cache_dir, tokenizer_cache_dir;

  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<PrepareOptions>(
        field("input", &PrepareOptions::input,
              "What to prepare: a Hugging Face data set (org/name), a .parquet or .csv file, a folder of pictures and "
              "clips, a webdataset of them, or synthetic:butterflies[:COUNT], which needs no download",
              config::not_empty),
        field("output_dir", &PrepareOptions::output_dir, "Folder for the webdataset; a stopped run there is continued",
              config::not_empty),
        field("image_column", &PrepareOptions::image_column,
              "Column of a table that holds the pictures, or their URLs; empty: the one there is"),
        field("caption_column", &PrepareOptions::caption_column,
              "Column of a table that holds the captions; empty: the one there is"),
        field("tokenizer", &PrepareOptions::tokenizer,
              "Video tokenizer: a hub id, a folder, or builtin (weightless); default: "
              "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8, for synthetic pictures builtin"),
        field(
            "text_encoder", &PrepareOptions::text_encoder,
            "Text encoder: a hub id, a folder, or builtin (weightless); default: google-t5/t5-11b (a large download), "
            "for synthetic pictures builtin"),
        field(
            "precision", &PrepareOptions::precision,
            "What the encoders compute in; auto: bf16 on a GPU, fp32 on a CPU. What is stored is bfloat16 in any case"),
        field("text_encoder_offload", &PrepareOptions::text_encoder_offload,
              "The text encoder is on the GPU only while it encodes: slower, for small GPUs"),
        field("encode_batch_pixels", &PrepareOptions::encode_batch_pixels,
              "Most pixels of pictures that a GPU encodes at once (4194304: 16 of 512x512); fewer need less memory",
              positive),
        field("short_side", &PrepareOptions::short_side,
              "Pixels of the shorter side after resizing; both sides are then cut to multiples of 16; default: 512, "
              "synthetic pictures 96",
              positive),
        field("num_video_frames", &PrepareOptions::num_video_frames,
              "Most frames of a clip; clips are cut to 1 + k n, k the tokenizer's temporal compression", positive),
        field("fps", &PrepareOptions::fps, "Frames a second to sample clips at; default: each clip's own", positive),
        field("num_workers", &PrepareOptions::num_workers,
              "Threads that read and resize pictures and clips, and on a CPU encode them; default: the cores of this "
              "rank, 2 to 16",
              positive),
        field("shard_max_count", &PrepareOptions::shard_max_count, "Most samples in a shard", positive),
        field("shard_max_bytes", &PrepareOptions::shard_max_bytes,
              "Most bytes of samples in a shard: what a stopped run may lose", positive),
        field("require_captions", &PrepareOptions::require_captions,
              "A missing or blank caption is an error, not the empty text"),
        field("seed", &PrepareOptions::seed, "Key of synthetic data"),
        field("hub_cache", &PrepareOptions::hub_cache,
              "Folder for downloads, in place of the hub's usual cache (HF_HOME, ~/.cache/huggingface)"),
        field("t5_cache_dir", &PrepareOptions::t5_cache_dir, "Folder for the download of the text encoder alone"),
        field("tokenizer_cache_dir", &PrepareOptions::tokenizer_cache_dir,
              "Folder for the download of the tokenizer alone"));
  }
};

}  // namespace dfm::prepare
