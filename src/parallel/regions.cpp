#include "dfm/parallel/regions.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/ops/attention.h"

namespace dfm::parallel {
namespace {

void require_alone(const Group& group, const char* axis) {
  if (group.size != 1) throw ConfigError("{} parallelism: got {} ranks, want 1", axis, group.size);
}

}  // namespace

at::Tensor enter_tensor_region(const at::Tensor& x, const Parallel& parallel) {
  require_alone(parallel.tensor, "tensor");
  return x;
}

at::Tensor leave_tensor_region(const at::Tensor& x, const Parallel& parallel) {
  require_alone(parallel.tensor, "tensor");
  return x;
}

at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                             const ops::Segments& segments, const Parallel& parallel) {
  require_alone(parallel.context, "context");
  return ops::packed_attention(q_THd, k_THd, v_THd, segments, segments);
}

}  // namespace dfm::parallel
