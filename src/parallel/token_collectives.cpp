#include "parallel/token_collectives.h"

#include "dfm/base/error.h"

namespace dfm::parallel {
namespace {

at::Tensor empty_with_rows(const at::Tensor& like, std::int64_t rows) {
  std::vector<std::int64_t> sizes = like.sizes().vec();
  sizes.at(0) = rows;
  return at::empty(sizes, like.options());
}

}  // namespace

PendingTensor start_sum(const at::Tensor& x, comm::Group& group) {
  const at::Tensor sum = x.clone(at::MemoryFormat::Contiguous);
  return {sum, group.all_reduce(sum), {}};
}

PendingTensor start_gather(const at::Tensor& x, comm::Group& group) {
  const at::Tensor part = x.contiguous(), all = empty_with_rows(x, x.size(0) * group.size());
  return {all, group.all_gather(all, part), part};
}

PendingTensor start_reduce_scatter(const at::Tensor& x, comm::Group& group) {
  if (x.size(0) % group.size() != 0) {
    throw InternalError("{} group: got {} rows, want a multiple of {}", group.name(), x.size(0), group.size());
  }
  const at::Tensor all = x.contiguous(), part = empty_with_rows(x, x.size(0) / group.size());
  return {part, group.reduce_scatter(part, all), all};
}

}  // namespace dfm::parallel
