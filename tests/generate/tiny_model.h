#pragma once
// A run folder with a tiny random model, for tests of generate.
#include <ATen/ATen.h>

#include <filesystem>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/comm/world.h"
#include "dfm/data/card.h"
#include "dfm/models/dit/dit.h"
#include "dfm/ops/philox_normal.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::test {

inline models::DitConfig tiny_config() {
  models::DitConfig config;
  config.num_layers = 2;
  config.hidden_size = 48;
  config.num_attention_heads = 2;
  return config;
}

// Every parameter random, also those that start as 0, so that text, time and position all matter.
inline checkpoint::NamedTensors tiny_weights(const models::DitConfig& config = tiny_config()) {
  const models::Dit dit(config, at::kFloat, at::kCPU, 1);
  checkpoint::NamedTensors tensors;
  for (const auto& [name, parameter] : dit.parameters()) {
    at::Tensor values = at::empty(parameter.sizes(), at::kFloat);
    ops::philox_normal_(values, 3, fnv1a64(name), Purpose::kParameter);
    const bool is_norm = name.find("norm") != std::string::npos;
    const double width = static_cast<double>(parameter.sizes().back());
    tensors.emplace_back(name, is_norm ? 1 + 0.1 * values : values * (1.0 / std::sqrt(width)));
  }
  for (auto& tensor : dit.constant_tensors(at::kFloat)) tensors.push_back(std::move(tensor));
  return tensors;
}

inline void write_iteration(const std::filesystem::path& run_folder, std::int64_t iteration,
                            const checkpoint::NamedTensors& weights, const std::optional<data::DatasetCard>& card) {
  namespace extra = checkpoint::extra;
  const auto write = [&](const std::filesystem::path& folder) {
    checkpoint::write_tensor_file(folder / extra::kWeightsFileName, weights);
    checkpoint::Scalars scalars{{extra::kIteration, iteration}};
    if (card) scalars[extra::kDatasetCard] = data::to_json(*card);
    checkpoint::write_tensor_file(folder / extra::kFileName, {}, scalars);
    std::filesystem::create_symlink(extra::kWeightsFileName, folder / extra::kModelLinkName);
  };
  checkpoint::save_iteration(run_folder, iteration, -1, *comm::World::solo(), write);
}

}  // namespace dfm::test
