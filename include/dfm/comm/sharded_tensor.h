#pragma once
// A tensor whose parts lie on several ranks, and the arithmetic of parts: pure functions.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace dfm::comm {

// A part of a whole tensor of `shape`: the block [begin, end) of dimension `dim` (-1: all of it), and of that block, in
// row-major order, the flat elements [first, last). A part's own data is those elements, one after the other.
struct Slice {
  int dim = -1;
  std::int64_t begin = 0, end = 0;   // without meaning for dim -1
  std::int64_t first = 0, last = 0;  // within the block
  [[nodiscard]] std::int64_t numel() const { return last - first; }
  bool operator==(const Slice&) const = default;
};

Slice whole_slice(const std::vector<std::int64_t>& shape);
// Block number `index` of `count` equal ones along `dim` (-1: the whole, whatever the index).
Slice block_slice(const std::vector<std::int64_t>& shape, int dim, int index, int count);
std::vector<std::int64_t> block_shape(const std::vector<std::int64_t>& shape, const Slice& slice);
// Elements [first, last) of the slice's own data, as a slice of the whole.
Slice sub_slice(const Slice& slice, std::int64_t first, std::int64_t last);

// The contiguous runs of a slice, in order: flat offset in the whole, offset in the slice's data, count; in elements.
void for_each_run(const std::vector<std::int64_t>& shape, const Slice& slice,
                  const std::function<void(std::int64_t whole, std::int64_t own, std::int64_t count)>& run);

// Part of a whole that one rank of the world holds.
struct Piece {
  int rank = 0;
  Slice slice;
};

// The pieces of all ranks cover the whole exactly once; every rank has the same list. `local`: this rank's own pieces,
// in the order in which they stand in `pieces`; flat, contiguous, on any device.
struct ShardedTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  at::ScalarType dtype = at::kFloat;
  std::vector<Piece> pieces;
  std::vector<at::Tensor> local;
};
// A tensor that one rank holds whole. On other ranks `tensor` is not looked at.
ShardedTensor whole_tensor(const std::string& name, const at::Tensor& tensor, int holder, int this_rank,
                           const std::vector<std::int64_t>& shape, at::ScalarType dtype);

// A part that a rank wants to have filled: `target` is flat, contiguous, of slice.numel() elements, any float dtype and
// device.
struct WantedSlice {
  std::string name;
  std::vector<std::int64_t> shape;  // of the whole
  Slice slice;
  at::Tensor target;
};

}  // namespace dfm::comm
