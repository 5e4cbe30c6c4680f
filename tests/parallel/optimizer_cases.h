#pragma once
// Checks of DistributedOptimizer over ranks, whatever carries the groups: threads of one process or processes.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/thread_ranks.h"

namespace dfm::parallel::test {

struct OptimizerCase {
  std::string name;
  int num_tensor = 1, num_data = 1;
  std::vector<int> rows;  // of each data rank
  bool use_distributed_optimizer = true;
  bool overlap = true;
  std::int64_t bucket_size = 300;  // small: many buckets
  at::ScalarType dtype = at::kDouble;
};
// Layouts of so many ranks: tensor and data axes, with and without sharded state, overlap, rows.
std::vector<OptimizerCase> optimizer_cases(int num_ranks);

// Five steps of a toy model whose gradients differ on each rank, with tensor collectives in the middle of backward. On
// every rank: parameters and gradients are those of one rank with all rows, copies and norms are equal bit by bit.
void check_equals_one_rank(const OptimizerCase& the_case, int rank, const MakeGroup& make_group);

// Trains in one layout, takes the state into another and goes on there as if nothing had happened.
void check_state_goes_to(const OptimizerCase& from, const OptimizerCase& to, int rank, const MakeGroup& make_group);

}  // namespace dfm::parallel::test
