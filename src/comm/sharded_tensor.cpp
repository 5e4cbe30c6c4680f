#include "dfm/comm/sharded_tensor.h"

#include <algorithm>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

std::int64_t product(const std::vector<std::int64_t>& shape, std::size_t begin, std::size_t end) {
  std::int64_t count = 1;
  for (std::size_t dim = begin; dim < end; ++dim) count *= shape[dim];
  return count;
}

// A block of dimension d is, in the flat whole, `num_rows` stretches of `length` elements, `stride` apart, the first at
// `offset`: dimensions before d number the stretches, those after d lie within one.
struct Stretches {
  std::int64_t offset = 0, length = 0, stride = 0, num_rows = 0;
};

Stretches stretches_of(const std::vector<std::int64_t>& shape, const Slice& slice) {
  if (slice.dim < 0) {
    const std::int64_t numel = product(shape, 0, shape.size());
    return {.offset = 0, .length = numel, .stride = numel, .num_rows = 1};
  }
  const auto dim = static_cast<std::size_t>(slice.dim);
  if (dim >= shape.size() || slice.begin < 0 || slice.begin > slice.end || slice.end > shape[dim]) {
    throw InternalError("slice [{}, {}) of dimension {}: want a block of a tensor of {} dimensions", slice.begin,
                        slice.end, slice.dim, shape.size());
  }
  const std::int64_t inner = product(shape, dim + 1, shape.size());
  return {.offset = slice.begin * inner,
          .length = (slice.end - slice.begin) * inner,
          .stride = shape[dim] * inner,
          .num_rows = product(shape, 0, dim)};
}

}  // namespace

Slice whole_slice(const std::vector<std::int64_t>& shape) { return {.last = product(shape, 0, shape.size())}; }

Slice block_slice(const std::vector<std::int64_t>& shape, int dim, int index, int count) {
  if (dim < 0) return whole_slice(shape);
  const auto d = static_cast<std::size_t>(dim);
  if (d >= shape.size() || count < 1 || index < 0 || index >= count || shape[d] % count != 0) {
    throw InternalError("block {} of {} along dimension {}: want equal blocks of a tensor of {} dimensions", index,
                        count, dim, shape.size());
  }
  const std::int64_t length = shape[d] / count;
  Slice slice{.dim = dim, .begin = index * length, .end = (index + 1) * length};
  slice.last = product(block_shape(shape, slice), 0, shape.size());
  return slice;
}

std::vector<std::int64_t> block_shape(const std::vector<std::int64_t>& shape, const Slice& slice) {
  std::vector<std::int64_t> block = shape;
  if (slice.dim >= 0) block[static_cast<std::size_t>(slice.dim)] = slice.end - slice.begin;
  return block;
}

Slice sub_slice(const Slice& slice, std::int64_t first, std::int64_t last) {
  if (first < 0 || first > last || last > slice.numel()) {
    throw InternalError("part [{}, {}) of a slice: want a part of its {} elements", first, last, slice.numel());
  }
  Slice part = slice;
  part.first = slice.first + first;
  part.last = slice.first + last;
  return part;
}

void for_each_run(const std::vector<std::int64_t>& shape, const Slice& slice,
                  const std::function<void(std::int64_t whole, std::int64_t own, std::int64_t count)>& run) {
  const Stretches stretches = stretches_of(shape, slice);
  if (slice.first < 0 || slice.first > slice.last || slice.last > stretches.length * stretches.num_rows) {
    throw InternalError("elements [{}, {}) of a block: want a part of its {}", slice.first, slice.last,
                        stretches.length * stretches.num_rows);
  }
  if (slice.numel() == 0) return;
  if (stretches.length == stretches.stride) {  // the stretches follow each other without a gap
    run(stretches.offset + slice.first, 0, slice.numel());
    return;
  }
  for (std::int64_t at = slice.first; at < slice.last;) {
    const std::int64_t row = at / stretches.length;
    const std::int64_t within = at % stretches.length;
    const std::int64_t count = std::min(stretches.length - within, slice.last - at);
    run(stretches.offset + row * stretches.stride + within, at - slice.first, count);
    at += count;
  }
}

ShardedTensor whole_tensor(const std::string& name, const at::Tensor& tensor, int holder, int this_rank,
                           const std::vector<std::int64_t>& shape, at::ScalarType dtype) {
  ShardedTensor whole{.name = name, .shape = shape, .dtype = dtype};
  whole.pieces = {{.rank = holder, .slice = whole_slice(shape)}};
  if (holder == this_rank) whole.local = {tensor.detach().contiguous().view(-1)};
  return whole;
}

}  // namespace dfm::comm
