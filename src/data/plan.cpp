#include "dfm/data/plan.h"

#include <algorithm>
#include <numeric>

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

std::vector<Row> pack_rows(const std::vector<std::int64_t>& token_lengths, const PackLimits& limits) {
  const std::vector<std::int64_t> lengths = row_lengths(limits);
  const auto length_of = [&](std::int64_t i) { return token_lengths[static_cast<std::size_t>(i)]; };
  std::vector<std::int64_t> order(token_lengths.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return length_of(a) > length_of(b); });
  std::vector<Row> rows;
  for (const std::int64_t i : order) {
    const std::int64_t length = length_of(i);
    if (length < 1 || length > limits.max_tokens) {
      throw DataError("sample {} of the step: got {} tokens, want 1 to {}; hint: dataset.task_encoder_seq_length", i,
                      length, limits.max_tokens);
    }
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

}  // namespace dfm::data
