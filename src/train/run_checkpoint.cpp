#include "train/run_checkpoint.h"

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/config/tree.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;
namespace extra = checkpoint::extra;

}  // namespace

checkpoint::IterationFolder save_checkpoint(const TrainConfig& config, const ExtraState& state,
                                            const models::Dit& model, parallel::DistributedOptimizer& optimizer,
                                            comm::World& world) {
  std::vector<comm::ShardedTensor> weights = optimizer.weights();
  // DFM's own loader wants these; every reader of ours ignores them.
  for (const auto& [name, tensor] : model.constant_tensors(weights.front().dtype))
    weights.push_back(comm::whole_tensor(name, tensor, 0, world.rank(), tensor.sizes().vec(), tensor.scalar_type()));
  return checkpoint::save_iteration(
      config.checkpoint.save, state.iteration, config.checkpoint.most_recent_k, world, [&](const fs::path& folder) {
        checkpoint::Scalars scalars = to_scalars(state);
        scalars[extra::kWeightsId] =
            std::int64_t{checkpoint::write_sharded_tensor_file(folder / extra::kWeightsFileName, weights, world)};
        scalars[extra::kOptimizerId] = std::int64_t{
            checkpoint::write_sharded_tensor_file(folder / extra::kOptimizerFileName, optimizer.state(), world)};
        if (!world.is_first()) return;
        checkpoint::write_tensor_file(folder / extra::kFileName, {}, scalars);
        write_file_atomically(folder / extra::kConfigFileName, config::to_yaml(config, config::YamlStyle::kFull));
        fs::create_symlink(extra::kWeightsFileName, folder / extra::kModelLinkName);
      });
}

ExtraState read_extra_state(const fs::path& iteration_folder) {
  const fs::path path = iteration_folder / extra::kFileName;
  if (!fs::exists(path)) {
    throw CheckpointError(
        "checkpoint {}: got no {}, want a checkpoint of dfm train; hint: weights alone load with "
        "checkpoint.pretrained_checkpoint",
        iteration_folder.string(), extra::kFileName);
  }
  return extra_state_from(checkpoint::TensorFile(path).scalars(), path.string());
}

void load_training_state(const fs::path& iteration_folder, parallel::DistributedOptimizer& optimizer,
                         comm::World& world) {
  const fs::path path = iteration_folder / extra::kOptimizerFileName;
  if (!fs::exists(path)) {
    throw CheckpointError(
        "checkpoint {}: got no {}, want the optimizer's state; hint: weights alone load with "
        "checkpoint.pretrained_checkpoint",
        iteration_folder.string(), extra::kOptimizerFileName);
  }
  checkpoint::TensorFile(path).read_slices(optimizer.wanted_state(), world);
  optimizer.state_loaded();
}

fs::path load_weights(const fs::path& path, models::Dit& model) {
  fs::path file = path;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    const fs::path folder = checkpoint::resolve_iteration(path).path;
    file = folder / (fs::exists(folder / extra::kModelLinkName) ? extra::kModelLinkName : extra::kWeightsFileName);
  }
  model.load(checkpoint::TensorFile(file).read_all(), file.string());
  return file;
}

std::uint64_t folder_bytes(const fs::path& folder) {
  std::uint64_t total = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && !entry.is_symlink()) total += entry.file_size();
  }
  return total;
}

}  // namespace dfm::train
