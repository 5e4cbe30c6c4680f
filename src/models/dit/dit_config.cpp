#include "dfm/models/dit/dit_config.h"

#include <c10/util/accumulate.h>
#include <fmt/format.h>

#include <numeric>

#include "dfm/models/dit/dit.h"
#include "models/dit/parameters.h"

namespace dfm::models {

void DitConfig::check(config::Problems& problems) const {
  if (num_attention_heads > 0 && hidden_size % num_attention_heads != 0) {
    problems.push_back({"num_attention_heads", fmt::format("{}", num_attention_heads),
                        fmt::format("a divisor of hidden_size = {}", hidden_size), ""});
  }
  if (num_attention_heads > 0 && num_attention_heads % tensor_model_parallel_size != 0) {
    problems.push_back({"tensor_model_parallel_size", fmt::format("{}", tensor_model_parallel_size),
                        fmt::format("a divisor of num_attention_heads = {}", num_attention_heads),
                        fmt::format("set model.tensor_model_parallel_size={}",
                                    std::gcd(num_attention_heads, tensor_model_parallel_size))});
  } else if (cp_comm_type == parallel::ContextComm::kA2a &&
             num_attention_heads / tensor_model_parallel_size % context_parallel_size != 0) {
    problems.push_back({"cp_comm_type", fmt::format("a2a with context_parallel_size = {}", context_parallel_size),
                        fmt::format("a context_parallel_size that divides the {} heads of a tensor rank",
                                    num_attention_heads / tensor_model_parallel_size),
                        "set model.cp_comm_type=p2p"});
  }
  // The position code gives a quarter of the channels to time and three eighths to each of height and width, each an
  // even number for its sines and cosines.
  if (hidden_size % 16 != 0) {
    problems.push_back({"hidden_size", fmt::format("{}", hidden_size), "a multiple of 16",
                        fmt::format("hidden_size={}", (hidden_size / 16 + 1) * 16)});
  }
  // Noise is counted by token * 64 + channel.
  if (token_channels() > 64) {
    problems.push_back({"in_channels", fmt::format("{} ({} a token, with its patch)", in_channels, token_channels()),
                        "at most 64 channels a token", ""});
  }
}

DitParameterCounts dit_parameter_counts(const DitConfig& config) {
  DitParameterCounts counts;
  for (const ParameterSpec& spec : dit_parameter_specs(config))
    (spec.split_dim < 0 ? counts.replicated : counts.split) += c10::multiply_integers(spec.shape);
  return counts;
}

std::vector<std::string> DitConfig::options_without_effect() const {
  std::vector<std::string> lines;
  if (sequence_parallel && tensor_model_parallel_size == 1) {
    lines.emplace_back("model.sequence_parallel=true has no effect with model.tensor_model_parallel_size=1");
  }
  if (cp_comm_type != DitConfig{}.cp_comm_type && context_parallel_size == 1) {
    lines.push_back(fmt::format("model.cp_comm_type={} has no effect with model.context_parallel_size=1",
                                config::enum_name(cp_comm_type)));
  }
  return lines;
}

double dit_flops(const DitConfig& config, const std::vector<std::int64_t>& token_lengths,
                 const std::vector<std::int64_t>& text_lengths) {
  constexpr double kAdaLnWidth = 256, kFpsWidth = 256;
  const auto d = static_cast<double>(config.hidden_size);
  const auto e = static_cast<double>(config.crossattn_emb_size);
  const auto c = static_cast<double>(config.token_channels());
  double of_layer = 0, of_ends = 0;  // multiply-adds
  for (std::size_t i = 0; i < token_lengths.size(); ++i) {
    const auto n = static_cast<double>(token_lengths[i]);
    const auto rows = static_cast<double>(text_lengths[i]);
    of_layer += 14 * n * d * d + 2 * n * n * d;         // linears, self-attention
    of_layer += 2 * rows * e * d + 2 * n * rows * d;    // text: keys and values, attention
    of_layer += kAdaLnWidth * d + kAdaLnWidth * 9 * d;  // modulation
    of_ends += 2 * n * c * d + 2 * d * d + 2 * kFpsWidth * kFpsWidth;
  }
  constexpr double kPerMultiplyAdd = 2, kForwardAndBackward = 3;
  return kPerMultiplyAdd * kForwardAndBackward * (static_cast<double>(config.num_layers) * of_layer + of_ends);
}

}  // namespace dfm::models
