#include "dfm/parallel/row.h"

#include <algorithm>
#include <numeric>

#include "dfm/base/error.h"

namespace dfm::parallel {
namespace {

using Lengths = std::vector<std::int64_t>;

// What rows [begin, end) hold of each segment.
Lengths clipped(const Lengths& lengths, std::int64_t begin, std::int64_t end) {
  Lengths result;
  std::int64_t first = 0;
  for (const std::int64_t length : lengths) {
    result.push_back(std::max<std::int64_t>(0, std::min(end, first + length) - std::max(begin, first)));
    first += length;
  }
  return result;
}

SharedSegment find_shared(const ops::Segments& mine, const ops::Segments& theirs, at::Device device) {
  SharedSegment shared;
  for (std::int64_t i = 0; i < mine.num_segments(); ++i) {
    if (mine.length(i) == 0 || theirs.length(i) == 0) continue;
    const auto at = static_cast<std::size_t>(i);
    shared.mine = ops::Segments::from_lengths({mine.length(i)}, device);
    shared.theirs = ops::Segments::from_lengths({theirs.length(i)}, device);
    shared.mine_first = mine.offsets[at];
    shared.theirs_first = theirs.offsets[at];
    break;
  }
  return shared;
}

}  // namespace

RowSegments RowSegments::make(const std::vector<std::int64_t>& lengths, const Parallel& parallel, at::Device device,
                              std::int64_t length) {
  const std::int64_t parts = parallel.token_parts(), num_contexts = parallel.context->size();
  const std::int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  if (length == 0) length = (tokens + parts - 1) / parts * parts;
  if (length < tokens || length % parts != 0) {
    throw InternalError("row: got length {}, want a multiple of {} and at least {}", length, parts, tokens);
  }
  RowSegments result;
  result.length = length;
  result.local_length = length / parts;
  result.local_first = parallel.token_part() * result.local_length;
  result.row = ops::Segments::from_lengths(lengths, device);
  const auto part_of = [&](std::int64_t first, std::int64_t size, at::Device where) {
    return size == length && where == device
               ? result.row
               : ops::Segments::from_lengths(clipped(lengths, first, first + size), where);
  };
  const std::int64_t context_length = length / num_contexts, mine = parallel.context->rank();
  for (std::int64_t i = 0; i < num_contexts; ++i) {
    result.contexts.push_back(part_of(i * context_length, context_length, at::kCPU));
  }
  result.context = part_of(mine * context_length, context_length, device);
  result.local =
      result.local_length == context_length ? result.context : part_of(result.local_first, result.local_length, device);
  result.shared.resize(static_cast<std::size_t>(num_contexts));
  for (std::int64_t i = 0; i < num_contexts; ++i) {
    if (i == mine) continue;
    const auto at = static_cast<std::size_t>(i);
    result.shared[at] = find_shared(result.contexts[static_cast<std::size_t>(mine)], result.contexts[at], device);
  }
  return result;
}

}  // namespace dfm::parallel
