#pragma once
// The ranks of a run as training sees them: the grid and its groups.
#include <ATen/core/Tensor.h>

#include <span>

#include "dfm/comm/grid.h"
#include "dfm/comm/world.h"
#include "dfm/models/dit/dit_config.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/parallel/parallel.h"

namespace dfm::train {

struct Layout {
  comm::GridSizes sizes;
  comm::Coordinates at;
  parallel::Parallel parallel;    // what the model gets
  parallel::ReduceGroups reduce;  // what the optimizer gets
  comm::GroupPtr model;           // tensor x context: ranks that work on the same rows

  // Of a row's loss this rank has a share that no other rank has; else the tensor group's first rank counts it.
  [[nodiscard]] bool counts_loss() const { return parallel.sequence || at.tensor == 0; }
  // The rank that speaks for its rows.
  [[nodiscard]] bool counts_rows() const { return at.tensor == 0 && at.context == 0; }
};

// Adds up each of `values` over all ranks. Waits.
void sum_over_ranks(comm::World& world, at::Device device, std::span<double> values);

// ConfigError for a layout that the world does not allow: before anything is allocated.
Layout make_layout(const models::DitConfig& config, comm::World& world);

}  // namespace dfm::train
