#include "models/t5/attention_groups.h"

#include <algorithm>
#include <limits>

namespace dfm::models {
namespace {

struct Run {  // captions of one length
  std::int64_t first, count, length;
};

// Traffic of attention for captions of [first, last] padded to the longest; infinite where the mask would be too large.
double cost_of(const Run& first, const Run& last, const GroupCosts& costs) {
  const bool equal = first.length == last.length;
  const auto count = static_cast<double>(last.first + last.count - first.first);
  const auto length = static_cast<double>(last.length);
  const double mask = (equal ? 1 : count) * length * length * static_cast<double>(costs.heads * costs.element_bytes);
  if (!equal && mask > static_cast<double>(costs.largest_mask)) return std::numeric_limits<double>::infinity();
  const double rows = count * length * static_cast<double>(costs.row_bytes);
  return costs.call_bytes + (equal ? rows : 3 * rows) + mask;  // padding: gathered and scattered as well
}

}  // namespace

std::vector<AttentionGroup> group_captions(const std::vector<std::int64_t>& lengths, const GroupCosts& costs) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    if (runs.empty() || runs.back().length != lengths[i]) runs.push_back({static_cast<std::int64_t>(i), 0, lengths[i]});
    ++runs.back().count;
  }
  std::vector<double> best(runs.size() + 1, 0);  // of the first n runs
  std::vector<std::size_t> start(runs.size() + 1, 0);
  for (std::size_t n = 1; n <= runs.size(); ++n) {
    best[n] = std::numeric_limits<double>::infinity();
    for (std::size_t s = 0; s < n; ++s) {
      const double cost = best[s] + cost_of(runs[s], runs[n - 1], costs);
      if (cost < best[n]) best[n] = cost, start[n] = s;
    }
  }
  std::vector<AttentionGroup> groups;
  for (std::size_t n = runs.size(); n > 0; n = start[n]) {
    const Run &first = runs[start[n]], &last = runs[n - 1];
    groups.push_back({first.first, last.first + last.count - first.first, last.length, first.length == last.length});
  }
  std::reverse(groups.begin(), groups.end());
  return groups;
}

}  // namespace dfm::models
