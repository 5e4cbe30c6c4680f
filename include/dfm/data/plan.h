#pragma once
// Which samples a step trains on and how they are packed into rows: pure functions, the same on every rank.
#include <cstdint>
#include <vector>

namespace dfm::data {

// The sample at `position` of the endless stream over `num_samples` keys sorted by bytes: epoch = position /
// num_samples is a fresh keyed permutation.
std::uint64_t sample_at(std::uint64_t seed, std::uint64_t position, std::uint64_t num_samples);

struct PackLimits {
  std::int64_t max_tokens = 15360;    // dataset.task_encoder_seq_length
  std::int64_t max_samples = 0;       // train.micro_batch_size; 0: no limit
  std::int64_t token_multiple = 128;  // 128 x TP x CP: padded lengths are multiples of this
};

// A micro-batch: positions relative to the step's first, in the order they lie in the row (longest first: equal lengths
// adjoin).
struct Row {
  std::vector<std::int64_t> members;
  std::int64_t num_tokens = 0;
  std::int64_t padded_tokens = 0;  // one of at most 16 lengths
};

// The at most 16 padded lengths, ascending: even steps of a multiple of token_multiple, the last at least max_tokens.
std::vector<std::int64_t> row_lengths(const PackLimits& limits);

// First fit decreasing: samples from long to short (equal ones by position), each into the first row that has room.
// token_lengths: of the step's samples by relative position. A sample longer than max_tokens is a DataError with its
// position.
std::vector<Row> pack_rows(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits);

// Deals items to ranks so that the sums of their costs are balanced: from the dearest to the cheapest (equal ones by
// number), each to the rank that has least so far (equal ones: the lowest). No rank gets more than 4/3 of what the best
// dealing gives the busiest one. The numbers of each rank's items, ascending; a rank may have none. `costs_before`:
// what each rank has to do anyway; empty: nothing.
std::vector<std::vector<std::int64_t>> deal_by_cost(const std::vector<double>& costs, std::int64_t num_ranks,
                                                    const std::vector<double>& costs_before = {});

// The whole step over `num_ranks` data ranks: samples are dealt by cost (per_token x tokens + per_pair x tokens^2),
// then packed into rows rank by rank. On one rank the rows are those of pack_rows. Members are positions relative to
// the step's first, on each rank. The same on every rank.
struct PackCost {
  double per_token = 1, per_pair = 0;
};
std::vector<std::vector<Row>> plan_step(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits,
                                        std::int64_t num_ranks, const PackCost& cost);

}  // namespace dfm::data
