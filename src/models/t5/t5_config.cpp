#include "models/t5/t5_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::models {
namespace {

using nlohmann::json;

constexpr std::int64_t kLargest = std::int64_t{1} << 24;  // of any number in a config: products stay far from overflow

void read_count(const json& config, const char* key, std::int64_t& value, const std::string& name) {
  const auto found = config.find(key);
  if (found == config.end()) return;
  if (!found->is_number_integer() || *found < 1 || *found > kLargest) {
    throw DataError("{}: got {} = {}, want a whole number from 1 to {}", name, key, found->dump(), kLargest);
  }
  value = found->get<std::int64_t>();
}

std::string read_string(const json& config, const char* key, const std::string& otherwise, const std::string& name) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return otherwise;
  if (!found->is_string()) throw DataError("{}: got {} = {}, want a string", name, key, found->dump());
  return found->get<std::string>();
}

T5Activation activation_of(const std::string& text, const std::string& name) {
  if (text == "relu") return T5Activation::kRelu;
  if (text == "gelu_new" || text == "gelu_pytorch_tanh" || text == "gelu_fast") return T5Activation::kGeluTanh;
  if (text == "gelu") return T5Activation::kGelu;
  if (text == "silu" || text == "swish") return T5Activation::kSilu;
  throw DataError("{}: got the activation {}, want relu, gelu_new, gelu_pytorch_tanh, gelu, silu or swish", name, text);
}

// `relu`, `gated-gelu` (which means gelu_new), `gated-silu`, ...; dense_act_fn and is_gated_act, where a file has them,
// win, as they do in transformers.
void read_feed_forward(const json& file, T5Config& config, const std::string& name) {
  const std::string kind = read_string(file, "feed_forward_proj", "relu", name);
  config.gated = kind.starts_with("gated-");
  std::string activation = config.gated ? kind.substr(6) : kind;
  if (kind == "gated-gelu") activation = "gelu_new";
  activation = read_string(file, "dense_act_fn", activation, name);
  if (const auto gated = file.find("is_gated_act"); gated != file.end() && gated->is_boolean()) config.gated = *gated;
  config.activation = activation_of(activation, name);
}

}  // namespace

T5Config parse_t5_config(const std::string& text, const std::string& name) {
  const json file = json::parse(text, nullptr, false);
  if (!file.is_object()) throw DataError("{}: got no JSON object, want the config.json of a T5", name);
  if (const std::string type = read_string(file, "model_type", "t5", name); type != "t5") {
    throw ConfigError("{}: got a model of type {}, want t5; hint: google-t5/t5-11b is what Cosmos models are made with",
                      name, type);
  }
  T5Config config;
  read_count(file, "vocab_size", config.vocab_size, name);
  read_count(file, "d_model", config.d_model, name);
  read_count(file, "d_kv", config.d_kv, name);
  read_count(file, "d_ff", config.d_ff, name);
  read_count(file, "num_layers", config.num_layers, name);
  read_count(file, "num_heads", config.num_heads, name);
  read_count(file, "relative_attention_num_buckets", config.num_buckets, name);
  read_count(file, "relative_attention_max_distance", config.max_distance, name);
  if (const auto epsilon = file.find("layer_norm_epsilon"); epsilon != file.end()) {
    if (!epsilon->is_number() || !(epsilon->get<double>() >= 0) || !std::isfinite(epsilon->get<double>())) {
      throw DataError("{}: got layer_norm_epsilon = {}, want a number of at least 0", name, epsilon->dump());
    }
    config.epsilon = epsilon->get<double>();
  }
  if (config.num_buckets < 4 || config.num_buckets % 2 != 0 || config.max_distance <= config.num_buckets / 4) {
    throw DataError(
        "{}: got {} position buckets up to distance {}, want an even number of at least 4 and a distance "
        "above a quarter of it",
        name, config.num_buckets, config.max_distance);
  }
  read_feed_forward(file, config, name);
  return config;
}

T5Config read_t5_config(const std::filesystem::path& path) {
  return parse_t5_config(read_text_file(path), path.string());
}

}  // namespace dfm::models
