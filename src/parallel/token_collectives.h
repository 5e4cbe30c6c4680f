#pragma once
// Collective operations as functions: of the rows (dimension 0) of tensors that need not be contiguous.
#include <ATen/ATen.h>

#include <utility>

#include "dfm/comm/group.h"

namespace dfm::parallel {

// A result that is valid after wait().
struct PendingTensor {
  at::Tensor tensor;
  comm::Work work;
  at::Tensor source;  // kept until then

  [[nodiscard]] at::Tensor wait() const {
    work.wait();
    return tensor;
  }
};

// The sum over the group. x is left as it is.
PendingTensor start_sum(const at::Tensor& x, comm::Group& group);
// The ranks' rows one after another.
PendingTensor start_gather(const at::Tensor& x, comm::Group& group);
// This rank's equal share of the rows, summed over the group.
PendingTensor start_reduce_scatter(const at::Tensor& x, comm::Group& group);

}  // namespace dfm::parallel
