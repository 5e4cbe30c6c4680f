#pragma once
// What a Cosmos tokenizer is made of: from diffusers' config.json, or from the names and shapes of its tensors.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dfm/models/encoders.h"

namespace dfm::models::cosmos {

using NamedTensors = std::map<std::string, at::Tensor>;

// Which halves of a level's sampler are there, and whether attention follows each of its residual blocks.
struct Level {
  bool spatial = false, temporal = false, attention = false;
};

struct Config {
  std::int64_t patch_size = 4;
  bool haar = true;  // else pixels are only rearranged
  std::int64_t latent_channels = 16;
  std::int64_t num_layers = 2;  // residual blocks of an encoder level; a decoder level has one more
  std::int64_t spatial_compression = 8, temporal_compression = 8;
  std::vector<std::int64_t> encoder_widths{128, 256, 512, 512};  // of conv_in, then of each level
  std::vector<std::int64_t> decoder_widths{256, 512, 512, 512};  // in reverse: of conv_in last
  std::int64_t resolution = 1024;
  std::vector<std::int64_t> attention_resolutions{32};

  [[nodiscard]] std::int64_t patch_channels() const { return 3 * patch_size * patch_size * patch_size; }
  [[nodiscard]] std::vector<Level> encoder_levels() const;  // in order of computation
  [[nodiscard]] std::vector<Level> decoder_levels() const;
};

// DataError: values that latents cannot be scaled by; `where` is their file.
void check_statistics(const LatentStatistics& statistics, const std::string& where);

struct ReadConfig {
  Config config;
  LatentStatistics statistics;
};
// Nothing for a config.json that is not of AutoencoderKLCosmos (Cosmos' own repositories have a short one of theirs).
// ConfigError: values that no network can have.
std::optional<ReadConfig> read_config(const std::filesystem::path& path);

// Of native or diffusers' names without a config.json. `name` may hold CV<t>x<s>x<s>, which decides what the samplers
// do; else the published variants are told apart by their tensors: old files store samplers that are never used.
// DataError: no such network; `where` is for messages.
Config derive_config(const NamedTensors& tensors, const std::string& name, const std::string& where);

// Cosmos' own name of a tensor that diffusers calls `name`.
std::string native_name(std::string name, std::int64_t num_levels);
bool has_native_names(const NamedTensors& tensors);

}  // namespace dfm::models::cosmos
