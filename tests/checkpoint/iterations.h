#pragma once
// A small iteration folder as train saves it.
#include <ATen/ATen.h>

#include "dfm/base/file.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"

namespace dfm::test {

inline checkpoint::IterationFolder save_small_iteration(const std::filesystem::path& run, std::int64_t iteration,
                                                        double value, std::int64_t keep = -1) {
  namespace extra = checkpoint::extra;
  const auto world = comm::World::solo();
  return checkpoint::save_iteration(run, iteration, keep, *world, [&](const std::filesystem::path& folder) {
    checkpoint::Scalars scalars = {{extra::kIteration, iteration}};
    scalars[extra::kWeightsId] = std::int64_t{
        checkpoint::write_tensor_file(folder / extra::kWeightsFileName, {{"layer.weight", at::full({5, 3}, value)}})};
    scalars[extra::kOptimizerId] = std::int64_t{checkpoint::write_tensor_file(
        folder / extra::kOptimizerFileName, {{"optimizer.state.exp_avg.layer.weight", at::full({5, 3}, value / 2)}})};
    checkpoint::write_tensor_file(folder / extra::kFileName, {}, scalars);
    write_file_atomically(folder / extra::kConfigFileName, "train:\n  train_iters: 7\n");
    std::filesystem::create_symlink(extra::kWeightsFileName, folder / extra::kModelLinkName);
  });
}

}  // namespace dfm::test
