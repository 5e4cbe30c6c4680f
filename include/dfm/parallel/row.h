#pragma once
// How the tokens of one packed row lie over the ranks. The row, padding included, is cut into token_parts() equal
// contiguous parts: a context rank has T / CP tokens, with sequence parallelism a tensor rank T / (CP x TP) of these.
#include <cstdint>
#include <vector>

#include "dfm/ops/segments.h"
#include "dfm/parallel/parallel.h"

namespace dfm::parallel {

// The one segment of which two context ranks hold tokens: there is at most one, since parts are contiguous. Each side
// is a row of one segment. Without tokens on either side when there is none.
struct SharedSegment {
  ops::Segments mine, theirs;
  std::int64_t mine_first = 0, theirs_first = 0;  // where its tokens begin in the rank's part

  [[nodiscard]] bool is_empty() const { return mine.num_tokens() == 0; }
};

// Every Segments of a row or part has all segments of the row in the same order; what lies outside a part has length 0
// there.
struct RowSegments {
  ops::Segments row;                    // the whole row
  std::vector<ops::Segments> contexts;  // of each context rank's tokens; only on the host
  ops::Segments context;                // of this rank's
  ops::Segments local;                  // of this rank's tokens between the matrices
  std::vector<SharedSegment> shared;    // with each context rank; empty with itself
  std::int64_t length = 0;              // of the row, padding included
  std::int64_t local_first = 0;         // where this rank's tokens between the matrices begin in the row
  std::int64_t local_length = 0;        // padding included

  // lengths: one a segment. length: of the padded row, a multiple of parallel.token_parts(), at least their sum; 0: the
  // sum rounded up to that multiple.
  static RowSegments make(const std::vector<std::int64_t>& lengths, const Parallel& parallel,
                          at::Device device = at::kCPU, std::int64_t length = 0);
};

}  // namespace dfm::parallel
