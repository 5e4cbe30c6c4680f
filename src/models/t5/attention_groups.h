#pragma once
// Which captions of a packed batch share an attention call. One call a length computes nothing in vain, but many small
// calls cost more than a little padding: the cheapest division of the lengths into neighbours is found exactly.
#include <cstdint>
#include <vector>

namespace dfm::models {

struct AttentionGroup {
  std::int64_t first = 0, count = 0;  // captions
  std::int64_t length = 0;            // of the longest
  bool equal = true;                  // all are of this length: no padding, no mask
};

struct GroupCosts {
  double call_bytes = 0;       // what one more call costs, as memory traffic
  std::int64_t row_bytes = 0;  // q, k, v and result of one token
  std::int64_t heads = 0, element_bytes = 0;
  std::int64_t largest_mask = std::int64_t{256} << 20;  // bytes of a group's mask
};

// Lengths must ascend.
std::vector<AttentionGroup> group_captions(const std::vector<std::int64_t>& lengths, const GroupCosts& costs);

}  // namespace dfm::models
