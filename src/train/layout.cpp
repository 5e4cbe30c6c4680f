#include "train/layout.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

namespace dfm::train {

Layout make_layout(const models::DitConfig& config, comm::World& world) {
  Layout layout;
  layout.sizes = comm::make_grid(world.size(), static_cast<int>(config.tensor_model_parallel_size),
                                 static_cast<int>(config.context_parallel_size),
                                 static_cast<int>(config.pipeline_model_parallel_size));
  layout.at = comm::coordinates_of(world.rank(), layout.sizes);
  const auto along = [&](const comm::Axes& axes) { return comm::ranks_along(world.rank(), axes, layout.sizes); };
  layout.parallel.tensor = world.group("tensor", along({.tensor = true}));
  layout.parallel.context = world.group("context", along({.context = true}));
  layout.parallel.sequence = config.sequence_parallel && layout.sizes.tensor > 1;
  layout.parallel.context_comm = config.cp_comm_type;

  // Groups of the same ranks are one; those of the model's regions stay apart, so that reductions can run beside them.
  std::map<std::vector<int>, comm::GroupPtr> made;
  const auto group = [&](const char* name, const comm::Axes& axes) {
    comm::GroupPtr& found = made[along(axes)];
    if (!found) found = world.group(name, along(axes));
    return found;
  };
  layout.reduce.tensor = layout.parallel.tensor;
  layout.reduce.data_context = group("data x context", {.context = true, .data = true});
  layout.reduce.replicas = group("replicas", {.tensor = true, .context = true, .data = true});
  layout.reduce.stage = layout.reduce.replicas;
  layout.model = group("tensor x context", {.tensor = true, .context = true});
  return layout;
}

void sum_over_ranks(comm::World& world, at::Device device, std::span<double> values) {
  if (world.size() == 1) return;
  const at::Tensor sums = at::tensor(at::ArrayRef<double>(values.data(), values.size()), at::kDouble).to(device);
  world.all()->all_reduce(sums).wait();
  const at::Tensor host = sums.to(at::kCPU);
  std::copy_n(host.const_data_ptr<double>(), values.size(), values.begin());
}

}  // namespace dfm::train
