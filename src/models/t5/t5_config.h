#pragma once
// What config.json of a T5 says about its encoder.
#include <cstdint>
#include <filesystem>
#include <string>

namespace dfm::models {

enum class T5Activation { kRelu, kGeluTanh, kGelu, kSilu };

struct T5Config {
  std::int64_t vocab_size = 32128;
  std::int64_t d_model = 512;
  std::int64_t d_kv = 64;
  std::int64_t d_ff = 2048;
  std::int64_t num_layers = 6;
  std::int64_t num_heads = 8;
  std::int64_t num_buckets = 32;
  std::int64_t max_distance = 128;
  double epsilon = 1e-6;
  bool gated = false;
  T5Activation activation = T5Activation::kRelu;

  [[nodiscard]] std::int64_t inner() const { return num_heads * d_kv; }
};

// DataError: not readable, or a number out of range. ConfigError: a model that is no T5.
T5Config read_t5_config(const std::filesystem::path& path);
T5Config parse_t5_config(const std::string& json, const std::string& name);

}  // namespace dfm::models
