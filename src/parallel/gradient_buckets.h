#pragma once
// Flat buckets of parameters and gradients, and the sums of gradients over ranks.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dfm/comm/group.h"
#include "dfm/parallel/distributed_optimizer.h"
#include "dfm/parallel/parameter.h"
#include "parallel/bucket_plan.h"

namespace dfm::parallel {

struct Bucket {
  BucketPlan plan;
  comm::GroupPtr group;
  at::Tensor parameters;    // flat, the parameters' dtype
  at::Tensor gradients;     // flat, the masters' dtype
  bool is_sharded = false;  // this rank gets the sum of its own part alone

  // This rank's part, which no other rank counts, and the elements whose state this rank holds.
  [[nodiscard]] Range part() const { return plan.part(group->rank()); }
  [[nodiscard]] Range owned() const { return is_sharded ? part() : plan.whole(); }
};

// Elements of a flat tensor.
at::Tensor elements(const at::Tensor& flat, const Range& range);

class GradientBuckets {
 public:
  // The parameters become views of the buckets; gradients go there by hooks, which the destructor takes away.
  // `parameters` must outlive this and not move.
  GradientBuckets(const std::vector<Parameter>& parameters, const ReduceGroups& groups,
                  const OptimizerSettings& settings);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  [[nodiscard]] const std::vector<Bucket>& buckets() const { return buckets_; }
  // Where parameter `index` lies.
  struct Place {
    std::size_t bucket = 0;
    Range range;
  };
  [[nodiscard]] const Place& place(std::size_t index) const { return places_[index]; }

  void zero();
  void begin_last_row();
  void reduce();
  [[nodiscard]] bool is_reduced() const { return num_launched_ == buckets_.size(); }

 private:
  class Hook;
  void move_parameters();
  void take_gradient(std::size_t index);
  void launch_complete();
  void launch(std::size_t index);

  const std::vector<Parameter>& parameters_;
  const OptimizerSettings settings_;
  const int num_tensor_ranks_;
  std::vector<Bucket> buckets_;
  std::vector<Place> places_;          // by parameter
  std::vector<at::Tensor> gradients_;  // by parameter: views of its bucket

  // State of a step. Buckets are launched strictly in order.
  bool is_last_row_ = false;
  std::vector<bool> has_arrived_;         // by parameter: its gradient of the last row
  std::vector<std::size_t> num_missing_;  // by bucket
  std::size_t num_launched_ = 0;
  std::vector<comm::Work> works_;
};

}  // namespace dfm::parallel
