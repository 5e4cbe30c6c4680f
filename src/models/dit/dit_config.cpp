#include "dfm/models/dit/dit_config.h"

#include <fmt/format.h>

#include "dfm/models/dit/dit.h"

namespace dfm::models {

void DitConfig::check(config::Problems& problems) const {
  if (num_attention_heads > 0 && hidden_size % num_attention_heads != 0) {
    problems.push_back({"num_attention_heads", fmt::format("{}", num_attention_heads),
                        fmt::format("a divisor of hidden_size = {}", hidden_size), ""});
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
