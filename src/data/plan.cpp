#include "dfm/data/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/philox.h"

namespace dfm::data {
namespace {

constexpr std::int64_t kMaxRowLengths = 16;  // shapes must repeat: one CUDA graph a length

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::uint64_t sample_at(std::uint64_t seed, std::uint64_t position, std::uint64_t num_samples) {
  if (num_samples == 0) throw InternalError("sample_at: got a data set without samples, want at least 1");
  return philox_permute(seed, position / num_samples, num_samples, position % num_samples, Purpose::kOrder);
}

std::vector<std::int64_t> row_lengths(const PackLimits& limits) {
  if (limits.max_tokens < 1 || limits.token_multiple < 1 || limits.max_samples < 0) {
    throw ConfigError("packing: got max_tokens {}, token_multiple {}, max_samples {}, want values > 0, >0 and >= 0",
                      limits.max_tokens, limits.token_multiple, limits.max_samples);
  }
  const std::int64_t longest = round_up(limits.max_tokens, limits.token_multiple);
  const std::int64_t step = round_up((longest + kMaxRowLengths - 1) / kMaxRowLengths, limits.token_multiple);
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = step; length < longest; length += step) lengths.push_back(length);
  lengths.push_back(longest);
  return lengths;
}

namespace {

void check_step(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits) {
  static_cast<void>(row_lengths(limits));  // checks the limits
  for (std::size_t i = 0; i < token_lengths.size(); ++i) {
    if (token_lengths[i] >= 1 && token_lengths[i] <= limits.max_tokens) continue;
    throw DataError("sample {} of the step: got {} tokens, want 1 to {}; hint: dataset.task_encoder_seq_length", i,
                    token_lengths[i], limits.max_tokens);
  }
}

// `order`: the samples to pack, by position.
std::vector<Row> pack(const std::vector<std::int64_t>& token_lengths, std::vector<std::int64_t> order,
                      const PackLimits& limits) {
  const std::vector<std::int64_t> lengths = row_lengths(limits);
  const auto length_of = [&](std::int64_t i) { return token_lengths[static_cast<std::size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return length_of(a) > length_of(b); });
  std::vector<Row> rows;
  for (const std::int64_t i : order) {
    const std::int64_t length = length_of(i);
    const auto has_room = [&](const Row& row) {
      return row.num_tokens + length <= limits.max_tokens &&
             (limits.max_samples == 0 || static_cast<std::int64_t>(row.members.size()) < limits.max_samples);
    };
    auto row = std::find_if(rows.begin(), rows.end(), has_room);
    if (row == rows.end()) row = rows.insert(rows.end(), Row{});
    row->members.push_back(i);
    row->num_tokens += length;
  }
  for (Row& row : rows) row.padded_tokens = *std::lower_bound(lengths.begin(), lengths.end(), row.num_tokens);
  return rows;
}

std::vector<std::int64_t> first_numbers(std::size_t count) {
  std::vector<std::int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), std::int64_t{0});
  return numbers;
}

}  // namespace

std::vector<Row> pack_rows(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits) {
  check_step(token_lengths, limits);
  return pack(token_lengths, first_numbers(token_lengths.size()), limits);
}

std::vector<std::vector<std::int64_t>> deal_by_cost(const std::vector<double>& costs, std::int64_t num_ranks,
                                                    const std::vector<double>& costs_before) {
  if (num_ranks < 1) throw InternalError("deal_by_cost: got {} ranks, want at least 1", num_ranks);
  for (std::size_t i = 0; i < costs.size(); ++i) {
    // Negation: not a number is refused, too. With it the order would be undefined, and so different on each rank.
    if (!(costs[i] >= 0 && std::isfinite(costs[i]))) {
      throw InternalError("deal_by_cost: got a cost of {} for item {}, want a finite one >= 0", costs[i], i);
    }
  }
  std::vector<std::int64_t> order = first_numbers(costs.size());
  const auto cost_of = [&](std::int64_t i) { return costs[static_cast<std::size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return cost_of(a) > cost_of(b); });
  using Load = std::pair<double, std::int64_t>;  // sum of costs, rank
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
    loads.emplace(costs_before.empty() ? 0.0 : costs_before.at(static_cast<std::size_t>(rank)), rank);
  }
  std::vector<std::vector<std::int64_t>> dealt(static_cast<std::size_t>(num_ranks));
  for (const std::int64_t i : order) {
    const auto [load, rank] = loads.top();
    loads.pop();
    dealt[static_cast<std::size_t>(rank)].push_back(i);
    loads.emplace(load + cost_of(i), rank);
  }
  for (std::vector<std::int64_t>& items : dealt) std::sort(items.begin(), items.end());
  return dealt;
}

std::vector<std::vector<Row>> plan_step(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits,
                                        std::int64_t num_ranks, const PackCost& cost) {
  check_step(token_lengths, limits);
  std::vector<double> costs;
  costs.reserve(token_lengths.size());
  for (const std::int64_t length : token_lengths) {
    const auto tokens = static_cast<double>(length);
    costs.push_back(cost.per_token * tokens + cost.per_pair * tokens * tokens);
  }
  std::vector<std::vector<Row>> rows;
  for (std::vector<std::int64_t>& members : deal_by_cost(costs, num_ranks)) {
    rows.push_back(pack(token_lengths, std::move(members), limits));
  }
  return rows;
}

}  // namespace dfm::data
