#pragma once
// Cosmos' continuous causal video tokenizers (0.1-CV4x8x8, CV8x8x8, CV8x16x16, Tokenize1-* and anything that diffusers'
// AutoencoderKLCosmos configures) as a native network: exact streaming over time and exact strips over space.
#include <filesystem>
#include <memory>
#include <string>

#include "dfm/models/encoders.h"

namespace dfm::models {

// What is there of a tokenizer; an empty path: not there. Needed: `weights`, or `encoder_jit` and `decoder_jit`.
struct CosmosFiles {
  std::string name;                                // what --tokenizer took
  std::filesystem::path config;                    // diffusers' config.json; else shapes and names decide
  std::filesystem::path weights;                   // diffusers' or native names, encoder and decoder
  std::filesystem::path encoder_jit, decoder_jit;  // TorchScript archives: their tensors are read
  std::filesystem::path mean_std;                  // mean_std.pt: a pair of [channels * frames] tensors
};

// DataError: files that are damaged, or whose tensors fit no tokenizer (names the first, counts the rest).
// ConfigError: a config.json that asks for what the network does not have.
std::unique_ptr<VideoTokenizer> open_cosmos(const CosmosFiles& files, const EncoderOptions& options);

// mean_std.pt: (mean, std), each [channels * frames], channel-major. DataError: something else.
LatentStatistics read_mean_std(const std::filesystem::path& path, std::int64_t channels);

}  // namespace dfm::models
