#pragma once
// Gradient buckets and AdamW over ranks, with mixed precision. Parameters lie in flat buckets, in the order backward
// fills them; a bucket's gradient is summed in the masters' dtype (float32; float64 in fp64 runs) as soon as the last
// row's backward has completed it, while backward goes on. With the distributed optimizer (ZeRO-1, Rajbhandari et al.,
// arXiv 1910.02054) each rank of the bucket's group gets the sum of its equal share, holds master weights and moments
// of that share alone, and the new values are gathered while the next forward runs.
//
// A parameter that is split over the tensor group is reduced over data x context. A replicated one is reduced over
// tensor x data x context, whole gradients weighted 1 / TP: its state is on one rank, every copy comes from there, and
// copies cannot drift apart.
//
//   optimizer.zero_gradients();
//   for each row but the last: forward_backward(row);
//   optimizer.begin_last_row(); forward_backward(last);
//   optimizer.reduce_gradients();                     // also on a rank without rows
//   norm = optimizer.step(lr, tokens, iteration);
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dfm/comm/group.h"
#include "dfm/comm/sharded_tensor.h"
#include "dfm/parallel/parameter.h"

namespace dfm::parallel {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct OptimizerSettings {
  double weight_decay = 0;  // not on 1-D parameters
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double clip_grad = 0;  // largest norm; 0: no clipping
  bool use_distributed_optimizer = true;
  bool overlap_grad_reduce = true;
  bool overlap_param_gather = true;
  std::int64_t bucket_size = 0;  // elements; 0: max(40 million, 1 million x group size)
};

// Groups that a bucket may be reduced over; all of them ascending ranks of the world. Of the replicas tensor ranks are
// neighbours: replicas[d x TP + t] has tensor index t and is number d of its data x context group.
struct ReduceGroups {
  comm::GroupPtr tensor = comm::alone();        // TP: for weights 1 / TP, and which rank counts a norm
  comm::GroupPtr data_context = comm::alone();  // DP x CP: split parameters
  comm::GroupPtr replicas = comm::alone();      // TP x CP x DP: replicated parameters
  comm::GroupPtr stage = comm::alone();         // all ranks with these layers (TP x CP x DP): the norm
};

class DistributedOptimizer {
 public:
  // Moves the parameters into flat buckets (their tensors keep identity and values) and makes masters of them.
  DistributedOptimizer(std::vector<Parameter> parameters, const ReduceGroups& groups,
                       const OptimizerSettings& settings);
  ~DistributedOptimizer();
  DistributedOptimizer(const DistributedOptimizer&) = delete;
  DistributedOptimizer& operator=(const DistributedOptimizer&) = delete;

  // Forgets accumulated gradients: before a step's first row. Between rows nothing is to do: what backward leaves in a
  // parameter is added to its bucket at once, in the masters' dtype.
  void zero_gradients();
  // From here to the end of the next backward, complete buckets are reduced at once (unless overlap is off).
  void begin_last_row();
  // Reduces what is not yet reduced. Every rank calls it, those without a row too.
  void reduce_gradients();
  // Divides the sums by `divisor`, clips the norm over all axes, takes a step with rate `lr`; `step` counts from 1.
  // Gives the norm of the divided gradients before clipping, the same on all ranks. When that is not finite nothing is
  // changed.
  double step(double lr, double divisor, std::int64_t step);

  // With overlap_param_gather: new values of the parameters of `stage` (Parameter::stage) are there when it returns.
  void wait_for_parameters(int stage);
  void wait_for_parameters();  // all

  // Whether all that this rank's backward has left since zero_gradients() is finite; before reduce_gradients().
  [[nodiscard]] bool has_finite_gradients() const;

  // After reduce_gradients(), before step(): the reduced sums by name. Every rank calls it. For tests and diagnosis.
  std::vector<comm::ShardedTensor> gradients();

  // optimizer.state.{param,exp_avg,exp_avg_sq}.<name>, whole shapes over the ranks, in the masters' dtype.
  std::vector<comm::ShardedTensor> state();
  // The parameters by name, in their own dtype; their pieces are dealt to the ranks that hold them.
  std::vector<comm::ShardedTensor> weights();
  // What this rank needs of a stored state, under the names of state(); targets are this rank's own memory.
  std::vector<comm::WantedSlice> wanted_state();
  // After the targets were filled: refreshes the parameters of all ranks. Every rank calls it.
  void state_loaded();
  // Takes the parameters' present values as masters and zeroes the moments. The same values on every replica.
  void reset_from_parameters();
  // The same with whole tensors by name, of any dtype: masters that were never rounded. Refreshes the parameters; every
  // rank calls it.
  void reset_from(const NamedTensors& whole);

  // Bytes on this rank, for the memory report.
  [[nodiscard]] std::int64_t state_bytes() const;
  [[nodiscard]] std::int64_t gradient_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dfm::parallel
