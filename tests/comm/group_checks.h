#pragma once
// What every group must do, whatever carries it. Called in all ranks of the group.
#include <ATen/core/Tensor.h>

#include <functional>

#include "dfm/comm/group.h"

namespace dfm::test {

struct Where {
  at::Device device = at::kCPU;
  bool has_ordered_sums = true;  // bit for bit rank 0 + rank 1 + ...; false: up to rounding
};

// What rank `rank` brings to operation `salt`, on the CPU: every rank can compute every other's.
at::Tensor input_of(int rank, std::int64_t numel, at::ScalarType dtype, int salt);
// Rank 0 + rank 1 + ..., bfloat16 in float32 and rounded once.
at::Tensor ordered_sum(int num_ranks, const std::function<at::Tensor(int rank)>& of_rank);

// All operations, types, and sizes from nothing to several chunks of a slot.
void check_every_operation(comm::Group& group, const Where& where);
// Everybody sends several pieces of mixed sizes, some empty, to everybody, and receives as many.
void check_exchange_of_all(comm::Group& group, const Where& where);

}  // namespace dfm::test
