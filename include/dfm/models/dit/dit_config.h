#pragma once
// Section `model`: the DFM DiT's shape and the axes it is spread over (names of Megatron-Bridge).
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dfm/config/schema.h"
#include "dfm/parallel/context_comm.h"

namespace dfm::models {

enum class Recompute { kNone, kSelective, kFull };
constexpr auto enum_names(Recompute) {
  return std::array{std::pair{Recompute::kNone, "none"}, std::pair{Recompute::kSelective, "selective"},
                    std::pair{Recompute::kFull, "full"}};
}

// Pipeline parallelism is not part of this version.
struct OnlyOne {
  static constexpr const char* problem(const std::int64_t& value) {
    return value == 1 ? nullptr : "1: this version has no pipeline";
  }
};
inline constexpr OnlyOne only_one;

struct DitConfig {
  std::int64_t num_layers = 28;
  std::int64_t hidden_size = 1152;
  std::int64_t num_attention_heads = 16;
  std::int64_t crossattn_emb_size = 1024;
  std::int64_t in_channels = 16;
  std::int64_t patch_spatial = 2;
  std::int64_t patch_temporal = 1;
  Recompute recompute_granularity = Recompute::kNone;
  std::int64_t tensor_model_parallel_size = 1;
  std::int64_t pipeline_model_parallel_size = 1;
  std::int64_t context_parallel_size = 1;
  parallel::ContextComm cp_comm_type = parallel::ContextComm::kP2p;
  bool sequence_parallel = false;

  [[nodiscard]] std::int64_t head_dim() const { return hidden_size / num_attention_heads; }
  [[nodiscard]] std::int64_t token_channels() const {
    return in_channels * patch_spatial * patch_spatial * patch_temporal;
  }

  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<DitConfig>(
        field("num_layers", &DitConfig::num_layers, "Transformer layers", positive),
        field("hidden_size", &DitConfig::hidden_size, "Width of the residual stream", positive),
        field("num_attention_heads", &DitConfig::num_attention_heads, "Attention heads; must divide hidden_size",
              positive),
        field("crossattn_emb_size", &DitConfig::crossattn_emb_size, "Width of the text rows; follows the data set",
              positive),
        field("in_channels", &DitConfig::in_channels, "Channels of the latent", positive),
        field("patch_spatial", &DitConfig::patch_spatial, "Latent cells a token spans in height and width", positive),
        field("patch_temporal", &DitConfig::patch_temporal, "Latent frames a token spans", positive),
        field("recompute_granularity", &DitConfig::recompute_granularity,
              "Recompute activations in backward: none; selective (the cheap ones: norms and GELU); full (each layer's "
              "input is kept, the rest is computed again)"),
        field("tensor_model_parallel_size", &DitConfig::tensor_model_parallel_size,
              "Ranks that share each layer's matrices; must divide the attention heads", positive),
        field("pipeline_model_parallel_size", &DitConfig::pipeline_model_parallel_size,
              "Ranks that share the layers; 1 in this version", only_one),
        field("context_parallel_size", &DitConfig::context_parallel_size, "Ranks that share a row's tokens", positive),
        field("cp_comm_type", &DitConfig::cp_comm_type,
              "How attention crosses the context ranks: p2p (keys and values go to the ranks that share a segment) or "
              "a2a "
              "(tokens exchanged for heads; context_parallel_size must divide the heads of a tensor rank)"),
        field("sequence_parallel", &DitConfig::sequence_parallel,
              "Spread the tokens between the matrices over the tensor ranks"));
  }
  void check(config::Problems& problems) const;
  // A line for each option that was set and has no effect in this layout: for one warning at the start of a run.
  [[nodiscard]] std::vector<std::string> options_without_effect() const;
};

}  // namespace dfm::models
