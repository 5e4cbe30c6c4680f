#pragma once
// Where parameters lie in flat buckets, and which rank has which part of them: pure functions, the same on every rank.
//
//   bucket    | parameter 0 | gap | parameter 1 ........ | gap | ... | padding |
//   parts     | part 0               | part 1               | part 2           |    one a rank of the bucket's group
//
// Parameters begin at multiples of kAlignment elements, as memory of their own would; gaps and padding are zero.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dfm/comm/sharded_tensor.h"
#include "dfm/parallel/parameter.h"

namespace dfm::parallel {

inline constexpr std::int64_t kAlignment = 64;

// Elements [begin, end) of a bucket.
struct Range {
  std::int64_t begin = 0, end = 0;
  [[nodiscard]] std::int64_t size() const { return end - begin; }
  [[nodiscard]] bool is_empty() const { return end <= begin; }
  bool operator==(const Range&) const = default;
};
Range intersection(const Range& a, const Range& b);

struct BucketPlan {
  bool is_split = false;             // of parameters that are split over the tensor group, or of replicated ones
  std::vector<std::size_t> members;  // indices of parameters
  std::vector<Range> ranges;         // where each lies
  std::int64_t size = 0;             // num_parts equal parts, each a multiple of kAlignment
  int num_parts = 1;
  int first_stage = 0, last_stage = 0;  // of its members

  [[nodiscard]] Range whole() const { return {0, size}; }
  [[nodiscard]] Range part(int index) const {
    const std::int64_t length = size / num_parts;
    return {index * length, (index + 1) * length};
  }
};

// What the plan needs of a parameter, and of the two kinds of buckets.
struct PlannedParameter {
  std::int64_t numel = 0;  // on one tensor rank
  int stage = 0;
  bool is_split = false;
};
struct BucketKind {
  std::int64_t bucket_size = 0;  // a bucket closes when its parameters have this many elements
  int num_parts = 1;
};

// Buckets in the order in which backward completes them: parameters of later stages first, those of one stage in the
// order given. A parameter is never divided between buckets.
std::vector<BucketPlan> plan_buckets(const std::vector<PlannedParameter>& parameters, const BucketKind& split,
                                     const BucketKind& replicated);

// The pieces of one parameter when each rank holds its part of the bucket: `range` is the parameter's place in it,
// `replicas` the ranks with copies or slices of it, num_tensor_ranks neighbours each (see ReduceGroups).
std::vector<comm::Piece> pieces_of(const Parameter& parameter, const BucketPlan& plan, const Range& range,
                                   const std::vector<int>& replicas, int num_tensor_ranks);

}  // namespace dfm::parallel
