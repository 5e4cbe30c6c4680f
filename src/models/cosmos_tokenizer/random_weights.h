#pragma once
// Weights that nobody trained, for tests and timings.
#include <cstdint>

#include "models/cosmos_tokenizer/network.h"

namespace dfm::models::cosmos {

// Keeps the size of activations about 1 through the network. native: under Cosmos' own names.
NamedTensors random_weights(const Config& config, std::uint64_t seed, bool native);

}  // namespace dfm::models::cosmos
