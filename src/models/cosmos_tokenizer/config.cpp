#include "models/cosmos_tokenizer/config.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::models::cosmos {
namespace {

using nlohmann::json;

std::int64_t log2_of(std::int64_t value) { return std::bit_width(static_cast<std::uint64_t>(value)) - 1; }
bool is_power_of_two(std::int64_t value) { return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value)); }

std::int64_t spatial_steps(const Config& config) {
  return log2_of(config.spatial_compression) - log2_of(config.patch_size);
}
std::int64_t temporal_steps(const Config& config) {
  return log2_of(config.temporal_compression) - log2_of(config.patch_size);
}

bool has_attention(const Config& config, std::int64_t resolution) {
  return std::find(config.attention_resolutions.begin(), config.attention_resolutions.end(), resolution) !=
         config.attention_resolutions.end();
}

// What a level divides or multiplies in all must be what the config names.
void check(const Config& config, const std::string& where) {
  const auto fail = [&](const char* what, const auto& got, const char* want) {
    throw ConfigError("{} of a Cosmos tokenizer: got {}, want {} ({})", what, got, want, where);
  };
  const auto one_of = [](std::int64_t value, std::initializer_list<std::int64_t> values) {
    return std::find(values.begin(), values.end(), value) != values.end();
  };
  if (!one_of(config.patch_size, {1, 2, 4, 8})) fail("patch_size", config.patch_size, "1, 2, 4 or 8");
  if (config.num_layers < 1 || config.num_layers > 64) fail("num_layers", config.num_layers, "1 to 64");
  if (config.latent_channels < 1 || config.latent_channels > 4096) {
    fail("latent_channels", config.latent_channels, "1 to 4096");
  }
  for (const auto* widths : {&config.encoder_widths, &config.decoder_widths}) {
    bool good = widths->size() >= 2 && widths->size() <= 16;
    for (const std::int64_t width : *widths) good = good && width >= 1 && width <= 65536;
    if (!good) fail("block widths", fmt::format("{}", fmt::join(*widths, ", ")), "2 to 16 of 1 to 65536");
  }
  if (config.encoder_widths.size() != config.decoder_widths.size()) {
    fail("block widths", fmt::format("{} and {}", config.encoder_widths.size(), config.decoder_widths.size()),
         "as many in the decoder as in the encoder");
  }
  for (const std::int64_t ratio : {config.spatial_compression, config.temporal_compression}) {
    if (!is_power_of_two(ratio) || ratio < config.patch_size || ratio > 64) {
      fail("compression ratio", ratio, "a power of two from patch_size to 64");
    }
  }
  std::int64_t spatial[2] = {0, 0}, temporal[2] = {0, 0};
  int half = 0;
  for (const std::vector<Level>& levels : {config.encoder_levels(), config.decoder_levels()}) {
    for (const Level& level : levels) {
      spatial[half] += level.spatial ? 1 : 0;
      temporal[half] += level.temporal ? 1 : 0;
    }
    ++half;
  }
  for (half = 0; half < 2; ++half) {
    if (spatial[half] != spatial_steps(config) || temporal[half] != temporal_steps(config)) {
      throw ConfigError(
          "compression of a Cosmos tokenizer's {}: got {} spatial and {} temporal steps, want {} and {} for {}x{} with "
          "patches of {} ({})",
          half == 0 ? "encoder" : "decoder", spatial[half], temporal[half], spatial_steps(config),
          temporal_steps(config), config.temporal_compression, config.spatial_compression, config.patch_size, where);
    }
  }
}

template <typename T>
void take(const json& object, const char* key, T& value, const std::string& where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  try {
    found->get_to(value);
  } catch (const json::exception&) {
    throw ConfigError("{}: got {}, want {} ({})", key, found->dump().substr(0, 60),
                      std::is_arithmetic_v<T> ? "a number" : "a list of numbers", where);
  }
}

LatentStatistics statistics_of(const json& object, const Config& config, const std::string& where) {
  LatentStatistics statistics;
  take(object, "latents_mean", statistics.mean, where);
  take(object, "latents_std", statistics.std, where);
  const auto channels = static_cast<std::size_t>(config.latent_channels);
  if (statistics.mean.size() != statistics.std.size() || statistics.mean.size() % channels != 0) {
    throw ConfigError("latents_mean and latents_std: got {} and {} values, want as many, a multiple of {} ({})",
                      statistics.mean.size(), statistics.std.size(), channels, where);
  }
  statistics.num_frames = static_cast<std::int64_t>(statistics.mean.size() / channels);
  check_statistics(statistics, where);
  return statistics;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

const at::Tensor* find(const NamedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

}  // namespace

void check_statistics(const LatentStatistics& statistics, const std::string& where) {
  for (const double mean : statistics.mean) {
    if (!std::isfinite(mean)) throw DataError("{}: got a latent mean of {}, want finite ones", where, mean);
  }
  for (const double std : statistics.std) {
    if (!std::isfinite(std) || std <= 0) {
      throw DataError("{}: got a latent standard deviation of {}, want finite ones above 0", where, std);
    }
  }
}

std::vector<Level> Config::encoder_levels() const {
  std::vector<Level> levels;
  const auto count = static_cast<std::int64_t>(encoder_widths.size()) - 1;
  std::int64_t side = resolution / patch_size;
  for (std::int64_t i = 0; i < count; ++i) {
    Level level{.attention = has_attention(*this, side)};
    if (i + 1 < count) {
      level.spatial = i < spatial_steps(*this);
      level.temporal = i < temporal_steps(*this);
      side /= 2;
    }
    levels.push_back(level);
  }
  return levels;
}

std::vector<Level> Config::decoder_levels() const {
  std::vector<Level> levels;
  const auto count = static_cast<std::int64_t>(decoder_widths.size()) - 1;
  const std::int64_t n_s = spatial_steps(*this), n_t = temporal_steps(*this);
  std::int64_t side = (resolution / patch_size) >> std::max<std::int64_t>(count - 1, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    Level level{.attention = has_attention(*this, side)};
    if (i + 1 < count) {
      level.temporal = 0 < i && i < n_t + 1;
      level.spatial = level.temporal || (i < n_s && n_s > n_t);
      side *= 2;
    }
    levels.push_back(level);
  }
  return levels;
}

std::optional<ReadConfig> read_config(const std::filesystem::path& path) {
  const std::string where = path.string();
  const json object = json::parse(read_text_file(path), nullptr, false);
  if (object.is_discarded() || !object.is_object()) {
    throw DataError("{}: got no JSON object, want a tokenizer's config.json", where);
  }
  if (!object.contains("encoder_block_out_channels") && object.value("_class_name", json()) != "AutoencoderKLCosmos") {
    return std::nullopt;
  }
  ReadConfig read;
  Config& config = read.config;
  std::int64_t in_channels = 3, out_channels = 3;
  std::string patch_type = "haar";
  take(object, "in_channels", in_channels, where);
  take(object, "out_channels", out_channels, where);
  take(object, "patch_type", patch_type, where);
  take(object, "patch_size", config.patch_size, where);
  take(object, "latent_channels", config.latent_channels, where);
  take(object, "num_layers", config.num_layers, where);
  take(object, "spatial_compression_ratio", config.spatial_compression, where);
  take(object, "temporal_compression_ratio", config.temporal_compression, where);
  take(object, "encoder_block_out_channels", config.encoder_widths, where);
  take(object, "decode_block_out_channels", config.decoder_widths, where);
  take(object, "resolution", config.resolution, where);
  take(object, "attention_resolutions", config.attention_resolutions, where);
  if (in_channels != 3 || out_channels != 3) {
    throw ConfigError("in_channels and out_channels: got {} and {}, want 3 ({})", in_channels, out_channels, where);
  }
  if (patch_type != "haar" && patch_type != "rearrange") {
    throw ConfigError("patch_type: got {}, want haar or rearrange ({})", patch_type, where);
  }
  config.haar = patch_type == "haar";
  check(config, where);
  read.statistics = statistics_of(object, config, where);
  return read;
}

bool has_native_names(const NamedTensors& tensors) {
  return tensors.contains("encoder.conv_in.0.conv3d.weight") || tensors.contains("decoder.conv_in.0.conv3d.weight");
}

std::string native_name(std::string name, std::int64_t num_levels) {
  constexpr std::string_view kUp = "decoder.up_blocks.";
  if (name.starts_with(kUp)) {
    const std::size_t end = name.find('.', kUp.size());
    const std::int64_t level = std::stoll(name.substr(kUp.size(), end - kUp.size()));
    name = fmt::format("decoder.up.{}{}", num_levels - 1 - level, name.substr(end));
  }
  if (name.find("samplers.0.") != std::string::npos || name.find("quant_conv.") != std::string::npos) {
    name.insert(name.rfind('.'), ".conv3d");
  }
  static constexpr std::pair<std::string_view, std::string_view> kParts[] = {
      {"down_blocks.", "down."},
      {"mid_block.resnets.0", "mid.block_1"},
      {"mid_block.resnets.1", "mid.block_2"},
      {"mid_block.attentions.0", "mid.attn_1.0"},
      {"mid_block.temp_attentions.0", "mid.attn_1.1"},
      {".resnets.", ".block."},
      {"downsamplers.0", "downsample"},
      {"upsamplers.0", "upsample"},
      {".conv_shortcut.", ".nin_shortcut.conv3d."},
      {".conv_s.", ".0.conv3d."},
      {".conv_t.", ".1.conv3d."},
      {".to_q.", ".q.conv3d."},
      {".to_k.", ".k.conv3d."},
      {".to_v.", ".v.conv3d."},
      {".to_out.0.", ".proj_out.conv3d."},
  };
  for (const auto& [from, to] : kParts) replace_all(name, from, to);
  return name;
}

Config derive_config(const NamedTensors& tensors, const std::string& name, const std::string& where) {
  const bool native = has_native_names(tensors);
  const auto shape = [&](const std::string& diffusers, std::int64_t levels) -> std::vector<std::int64_t> {
    const at::Tensor* tensor = find(tensors, native ? native_name(diffusers, levels) : diffusers);
    return tensor == nullptr || tensor->dim() != 5 ? std::vector<std::int64_t>{} : tensor->sizes().vec();
  };
  Config config;
  const auto conv_in = shape("encoder.conv_in.conv_s.weight", 0), quant = shape("quant_conv.weight", 0),
             decoder_in = shape("decoder.conv_in.conv_s.weight", 0);
  if (conv_in.empty() || quant.empty() || decoder_in.empty()) {
    const std::string missing = conv_in.empty()      ? "encoder.conv_in.conv_s.weight"
                                : decoder_in.empty() ? "decoder.conv_in.conv_s.weight"
                                                     : "quant_conv.weight";
    throw DataError("tensors of a Cosmos tokenizer: got {} without {}, want one with encoder and decoder ({})",
                    tensors.size(), native ? native_name(missing, 0) : missing, where);
  }
  config.patch_size = 0;
  for (const std::int64_t patch : {1, 2, 4, 8}) {
    if (conv_in[1] == 3 * patch * patch * patch) config.patch_size = patch;
  }
  if (config.patch_size == 0) {
    throw DataError("encoder.conv_in of a Cosmos tokenizer: got {} channels, want 3 times 1, 8, 64 or 512 ({})",
                    conv_in[1], where);
  }
  config.latent_channels = quant[0];
  config.attention_resolutions.clear();
  config.encoder_widths = {conv_in[0]};
  std::int64_t levels = 0;
  for (;; ++levels) {
    const auto block = shape(fmt::format("encoder.down_blocks.{}.resnets.0.conv1.conv_s.weight", levels), 0);
    if (block.empty() || levels == 15) break;
    config.encoder_widths.push_back(block[0]);
  }
  for (config.num_layers = 0; config.num_layers < 64; ++config.num_layers) {
    const std::string block = fmt::format("encoder.down_blocks.0.resnets.{}.conv1.conv_s.weight", config.num_layers);
    if (shape(block, 0).empty()) break;
  }
  config.decoder_widths.assign(1, decoder_in[0]);
  for (std::int64_t i = 0; i < levels; ++i) {
    const auto block = shape(fmt::format("decoder.up_blocks.{}.resnets.0.conv1.conv_s.weight", i), levels);
    // A missing level: the width of the one below, and its tensors will be reported as missing.
    config.decoder_widths.insert(config.decoder_widths.begin(),
                                 block.empty() ? config.decoder_widths.front() : block[0]);
  }
  const auto has = [&](std::int64_t level, int conv) {
    return !shape(fmt::format("encoder.down_blocks.{}.downsamplers.0.conv{}.weight", level, conv), 0).empty();
  };
  static const std::regex kVariant("CV([0-9]+)x([0-9]+)x[0-9]+");
  std::smatch match;  // the last one: folders further up may be called anything
  for (std::sregex_iterator found(name.begin(), name.end(), kVariant), end; found != end; ++found) match = *found;
  if (!match.empty() && match[1].length() < 4 && match[2].length() < 4) {
    config.temporal_compression = std::stoll(match[1]);
    config.spatial_compression = std::stoll(match[2]);
  } else if (config.patch_size == 4 && levels == 2) {
    // CV4x8x8 of 0.1, whose files store a temporal half that is not used.
    config.temporal_compression = 4, config.spatial_compression = 8;
  } else if (config.patch_size == 4 && levels == 3) {
    // CV8x8x8 of 0.1 stores a whole sampler that is not used; CV8x16x16 has the spatial half only.
    config.temporal_compression = 8, config.spatial_compression = has(1, 1) && !has(1, 2) ? 16 : 8;
  } else {
    config.temporal_compression = config.spatial_compression = config.patch_size;
    for (std::int64_t i = 0; i + 1 < levels && i < 6; ++i) {
      if (has(i, 1)) config.spatial_compression *= 2;
      if (has(i, 2)) config.temporal_compression *= 2;
    }
  }
  try {
    check(config, where);
  } catch (const ConfigError& error) {
    throw DataError("{}", error.what());
  }
  return config;
}

}  // namespace dfm::models::cosmos
