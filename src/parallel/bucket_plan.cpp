#include "parallel/bucket_plan.h"

#include <algorithm>
#include <numeric>

namespace dfm::parallel {
namespace {

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A bucket while it is being filled.
struct OpenBucket {
  BucketPlan plan;
  BucketKind kind;
  std::int64_t numel = 0;
  std::size_t last_position = 0;  // in backward's order

  void add(std::size_t index, const PlannedParameter& parameter, std::size_t position) {
    const std::int64_t begin = plan.ranges.empty() ? 0 : round_up(plan.ranges.back().end, kAlignment);
    plan.ranges.push_back({begin, begin + parameter.numel});
    // Stages come in descending order.
    if (plan.members.empty()) plan.last_stage = parameter.stage;
    plan.first_stage = parameter.stage;
    plan.members.push_back(index);
    numel += parameter.numel;
    last_position = position;
  }

  BucketPlan close() {
    plan.num_parts = kind.num_parts;
    plan.size = round_up(plan.ranges.back().end, kAlignment * kind.num_parts);
    BucketPlan closed = std::move(plan);
    plan = {.is_split = closed.is_split};
    numel = 0;
    return closed;
  }
};

}  // namespace

Range intersection(const Range& a, const Range& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

std::vector<BucketPlan> plan_buckets(const std::vector<PlannedParameter>& parameters, const BucketKind& split,
                                     const BucketKind& replicated) {
  std::vector<std::size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return parameters[a].stage > parameters[b].stage; });
  OpenBucket open_split{.plan = {.is_split = true}, .kind = split};
  OpenBucket open_replicated{.plan = {.is_split = false}, .kind = replicated};
  std::vector<BucketPlan> buckets;
  for (std::size_t position = 0; position < order.size(); ++position) {
    const PlannedParameter& parameter = parameters[order[position]];
    OpenBucket& open = parameter.is_split ? open_split : open_replicated;
    open.add(order[position], parameter, position);
    if (open.numel >= open.kind.bucket_size) buckets.push_back(open.close());
  }
  std::vector<OpenBucket*> rest{&open_split, &open_replicated};
  if (open_replicated.last_position < open_split.last_position) std::swap(rest[0], rest[1]);
  for (OpenBucket* open : rest) {
    if (!open->plan.members.empty()) buckets.push_back(open->close());
  }
  return buckets;
}

std::vector<comm::Piece> pieces_of(const Parameter& parameter, const BucketPlan& plan, const Range& range,
                                   const std::vector<int>& replicas, int num_tensor_ranks) {
  const int num_blocks = parameter.split_dim >= 0 ? num_tensor_ranks : 1;
  std::vector<comm::Piece> pieces;
  for (int block = 0; block < num_blocks; ++block) {
    const comm::Slice slice = comm::block_slice(parameter.shape, parameter.split_dim, block, num_blocks);
    for (int part = 0; part < plan.num_parts; ++part) {
      const Range held = intersection(plan.part(part), range);
      if (held.is_empty()) continue;
      pieces.push_back({.rank = replicas[static_cast<std::size_t>(part * num_blocks + block)],
                        .slice = comm::sub_slice(slice, held.begin - range.begin, held.end - range.begin)});
    }
  }
  return pieces;
}

}  // namespace dfm::parallel
