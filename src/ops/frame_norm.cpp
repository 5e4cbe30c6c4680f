// Legend: F frames, H rows, W columns, C channels.
#include "dfm/ops/frame_norm.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "ops/cuda_kernels.h"

namespace dfm::ops {
namespace {

bool has_kernel(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return x.is_cuda() && (type == at::kFloat || type == at::kBFloat16) && cuda_kernels() != nullptr;
}

CudaType cuda_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? CudaType::kFloat : CudaType::kBfloat16;
}

// Whether rows, columns and channels of each frame lie in one run of memory.
bool frames_are_dense(const at::Tensor& x_FHWC) {
  return x_FHWC.stride(3) == 1 && x_FHWC.stride(2) == x_FHWC.size(3) &&
         x_FHWC.stride(1) == x_FHWC.size(2) * x_FHWC.size(3);
}

at::Tensor dense_frames(const at::Tensor& x_FHWC) { return frames_are_dense(x_FHWC) ? x_FHWC : x_FHWC.contiguous(); }

CudaFrames cuda_frames(const at::Tensor& x_FHWC) {
  return {x_FHWC.size(0), x_FHWC.size(1) * x_FHWC.size(2), x_FHWC.size(3), x_FHWC.stride(0)};
}

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

}  // namespace

FrameMoments frame_moments(const at::Tensor& x_FHWC, const at::Tensor& bias_C, double eps) {
  const at::TensorOptions options = x_FHWC.options().dtype(at::kFloat);
  FrameMoments moments{at::empty({x_FHWC.size(0)}, options), at::empty({x_FHWC.size(0)}, options)};
  if (has_kernel(x_FHWC)) {
    const at::Tensor x = dense_frames(x_FHWC);
    const CudaFrames frames = cuda_frames(x);
    const at::Tensor partial = at::empty({cuda_frame_partial_size(frames)}, options.dtype(at::kDouble));
    cuda_kernels()->frame_moments(cuda_type(x), frames, x.const_data_ptr(), floats(bias_C),
                                  moments.mean_F.data_ptr<float>(), moments.rstd_F.data_ptr<float>(),
                                  partial.data_ptr<double>(), eps);
    return moments;
  }
  // Frame by frame: the differences are a temporary of one frame.
  for (std::int64_t f = 0; f < x_FHWC.size(0); ++f) {
    at::Tensor frame = x_FHWC.select(0, f).to(at::kFloat);
    if (bias_C.defined()) frame = frame + bias_C;
    const at::Tensor mean = frame.mean();
    moments.mean_F.select(0, f).copy_(mean);
    moments.rstd_F.select(0, f).copy_((frame - mean).square_().mean().add_(eps).rsqrt_());
  }
  return moments;
}

at::Tensor frame_normalise(const at::Tensor& x_FHWC, const FrameMoments& moments, const at::Tensor& weight_C,
                           const at::Tensor& shift_C, const at::Tensor& bias_C, bool silu) {
  if (has_kernel(x_FHWC)) {
    const at::Tensor x = dense_frames(x_FHWC);
    at::Tensor out = at::empty(x.sizes(), x.options());
    cuda_kernels()->frame_normalise(cuda_type(x), cuda_frames(x), x.const_data_ptr(), floats(bias_C),
                                    floats(moments.mean_F), floats(moments.rstd_F), floats(weight_C), floats(shift_C),
                                    silu, out.data_ptr());
    return out;
  }
  const at::Tensor scale_F11C = moments.rstd_F.view({-1, 1, 1, 1}) * weight_C;
  at::Tensor center_F11C = moments.mean_F.view({-1, 1, 1, 1}).expand_as(scale_F11C);
  if (bias_C.defined()) center_F11C = center_F11C - bias_C;
  at::Tensor out = at::addcmul(shift_C - center_F11C * scale_F11C, x_FHWC.to(at::kFloat), scale_F11C);
  if (silu) out = at::silu_(out);
  return out.to(x_FHWC.scalar_type()).contiguous();
}

void add_with_bias(const at::Tensor& target_FHWC, const at::Tensor& y_FHWC, const at::Tensor& bias_C) {
  if (target_FHWC.sizes() != y_FHWC.sizes() || target_FHWC.scalar_type() != y_FHWC.scalar_type()) {
    throw InternalError("add_with_bias: the shapes or types of the two tensors differ");
  }
  at::Tensor target = target_FHWC;  // shares memory
  if (has_kernel(target) && frames_are_dense(target)) {
    const at::Tensor y = dense_frames(y_FHWC);
    cuda_kernels()->frame_add(cuda_type(target), cuda_frames(target), target.data_ptr(), y.const_data_ptr(),
                              y.stride(0), floats(bias_C));
    return;
  }
  target.add_(y_FHWC);
  if (bias_C.defined()) target.add_(bias_C.to(target.scalar_type()));
}

}  // namespace dfm::ops
