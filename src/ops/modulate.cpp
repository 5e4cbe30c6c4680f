// Legend: T rows, N segments, D width.
#include "dfm/ops/modulate.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include "dfm/base/error.h"
#include "ops/cpu_kernels.h"
#include "ops/cuda_kernels.h"
#include "ops/parallel_for.h"
#include "ops/saved_segments.h"

namespace dfm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kRowsPerBlock = 32;  // of the sums over rows: fixed, so that no result depends on threads

enum class Path { kCpu, kCuda, kAten };
Path path_for(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  if (x.is_cpu() && (type == at::kFloat || type == at::kDouble)) return Path::kCpu;
  const bool has_kernel = x.is_cuda() && (type == at::kFloat || type == at::kBFloat16) && cuda_kernels() != nullptr;
  return has_kernel ? Path::kCuda : Path::kAten;
}

at::ScalarType wide_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

CudaType cuda_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? CudaType::kFloat : CudaType::kBfloat16;
}

CudaRow cuda_row(const at::Tensor& x_TD, const at::Tensor& modulation_ND, const Segments& segments) {
  return {segments.cu_seqlens.const_data_ptr<std::int32_t>(),
          segments.num_segments(),
          segments.max_length,
          x_TD.size(0),
          x_TD.size(1),
          modulation_ND.stride(0)};
}

// Pieces of segments, the unit of work of a thread and of the sums.
struct RowBlock {
  std::int64_t segment, begin, count;
};
std::vector<RowBlock> row_blocks(const Segments& segments) {
  std::vector<RowBlock> blocks;
  for (std::int64_t segment = 0; segment < segments.num_segments(); ++segment) {
    const std::int64_t end = segments.offsets[static_cast<std::size_t>(segment) + 1];
    for (std::int64_t begin = end - segments.length(segment); begin < end; begin += kRowsPerBlock) {
      blocks.push_back({segment, begin, std::min(kRowsPerBlock, end - begin)});
    }
  }
  return blocks;
}

template <typename Body>
void for_blocks(const std::vector<RowBlock>& blocks, const Body& body) {
  parallel_for(static_cast<std::int64_t>(blocks.size()), 2, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) body(blocks[static_cast<std::size_t>(i)], i);
  });
}

// Sums [blocks, sums, D] over the blocks of each segment, in order: [sums, N, D].
at::Tensor sum_blocks(const at::Tensor& partial_BSD, const std::vector<RowBlock>& blocks, std::int64_t num_segments) {
  const at::Tensor total_SND =
      at::zeros({partial_BSD.size(1), num_segments, partial_BSD.size(2)}, partial_BSD.options());
  for (std::size_t first = 0; first < blocks.size();) {
    std::size_t last = first;
    while (last < blocks.size() && blocks[last].segment == blocks[first].segment) ++last;
    const auto begin = static_cast<std::int64_t>(first);
    at::Tensor target_SD = total_SND.select(1, blocks[first].segment);
    at::sum_out(target_SD, partial_BSD.narrow(0, begin, static_cast<std::int64_t>(last - first)), 0);
    first = last;
  }
  return total_SND;
}

void zero_padding(const at::Tensor& rows_TD, const Segments& segments) {
  const std::int64_t padding = rows_TD.size(0) - segments.num_tokens();
  if (padding > 0) rows_TD.narrow(0, segments.num_tokens(), padding).zero_();
}

void check(const char* name, const at::Tensor& x_TD, const at::Tensor& modulation_ND, const Segments& segments) {
  if (x_TD.dim() != 2 || x_TD.size(0) < segments.num_tokens() || modulation_ND.dim() != 2 ||
      modulation_ND.size(0) != segments.num_segments() || modulation_ND.size(1) != x_TD.size(1) ||
      modulation_ND.scalar_type() != x_TD.scalar_type() || modulation_ND.stride(1) != 1) {
    throw InternalError("{}: got x {} {} and modulation {} {}, want {} segments and {} tokens of one dtype", name,
                        c10::toString(x_TD.scalar_type()), fmt::join(x_TD.sizes(), "x"),
                        c10::toString(modulation_ND.scalar_type()), fmt::join(modulation_ND.sizes(), "x"),
                        segments.num_segments(), segments.num_tokens());
  }
}

// --- norm_modulate -----------------------------------------------------------------------------------------------

template <typename T>
void norm_modulate_on_cpu(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                          const Segments& segments, double eps, const at::Tensor& out, const at::Tensor& mean,
                          const at::Tensor& rstd) {
  const std::int64_t width = x.size(1);
  for_blocks(row_blocks(segments), [&](const RowBlock& block, std::int64_t) {
    cpu_kernels<T>().norm_modulate(
        x.const_data_ptr<T>() + block.begin * width, shift.const_data_ptr<T>() + block.segment * shift.stride(0),
        scale.const_data_ptr<T>() + block.segment * scale.stride(0), out.data_ptr<T>() + block.begin * width,
        mean.data_ptr<T>() + block.begin, rstd.data_ptr<T>() + block.begin, block.count, width, eps);
  });
}

// Returns the gradients of shift and scale.
template <typename T>
at::Tensor norm_modulate_backward_on_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                         const at::Tensor& mean, const at::Tensor& rstd, const Segments& segments,
                                         const at::Tensor& grad_x) {
  const std::int64_t width = x.size(1);
  const std::vector<RowBlock> blocks = row_blocks(segments);
  const at::Tensor partial = at::empty({static_cast<std::int64_t>(blocks.size()), 2, width}, x.options());
  for_blocks(blocks, [&](const RowBlock& block, std::int64_t i) {
    T* const sums = partial.data_ptr<T>() + i * 2 * width;
    cpu_kernels<T>().norm_modulate_backward(
        grad.const_data_ptr<T>() + block.begin * width, x.const_data_ptr<T>() + block.begin * width,
        scale.const_data_ptr<T>() + block.segment * scale.stride(0), mean.const_data_ptr<T>() + block.begin,
        rstd.const_data_ptr<T>() + block.begin, grad_x.data_ptr<T>() + block.begin * width, sums, sums + width,
        block.count, width);
  });
  return sum_blocks(partial, blocks, segments.num_segments());
}

void norm_modulate_by_aten(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale,
                           const Segments& segments, double eps, const at::Tensor& out, const at::Tensor& mean,
                           const at::Tensor& rstd) {
  const at::Tensor wide = x.to(wide_type(x));
  mean.copy_(wide.mean(1));
  const at::Tensor centered = wide - mean.unsqueeze(1);
  rstd.copy_(centered.square().mean(1).add_(eps).rsqrt_());
  const at::Tensor normed = centered * rstd.unsqueeze(1);
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    const std::int64_t begin = segments.offsets[static_cast<std::size_t>(i)];
    out.narrow(0, begin, segments.length(i))
        .copy_(normed.narrow(0, begin, segments.length(i)) * (1 + scale[i].to(wide.scalar_type())) + shift[i]);
  }
}

at::Tensor norm_modulate_backward_by_aten(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                          const at::Tensor& mean, const at::Tensor& rstd, const Segments& segments,
                                          const at::Tensor& grad_x) {
  const at::ScalarType wide_dtype = wide_type(x);
  const at::Tensor sums = at::zeros({2, segments.num_segments(), x.size(1)}, x.options().dtype(wide_dtype));
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    const std::int64_t begin = segments.offsets[static_cast<std::size_t>(i)];
    const std::int64_t length = segments.length(i);
    const at::Tensor inverse = rstd.narrow(0, begin, length).unsqueeze(1);
    const at::Tensor normed =
        (x.narrow(0, begin, length).to(wide_dtype) - mean.narrow(0, begin, length).unsqueeze(1)) * inverse;
    const at::Tensor grad_rows = grad.narrow(0, begin, length).to(wide_dtype);
    sums[0][i].copy_(grad_rows.sum(0));
    sums[1][i].copy_((grad_rows * normed).sum(0));
    const at::Tensor inner = grad_rows * (1 + scale[i].to(wide_dtype));
    grad_x.narrow(0, begin, length)
        .copy_(inverse * (inner - inner.mean(1, true) - normed * (inner * normed).mean(1, true)));
  }
  return sums;
}

struct NormModulate : torch::autograd::Function<NormModulate> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& shift_ND,
                            const at::Tensor& scale_ND, const Segments& segments, double eps) {
    const at::Tensor x = x_TD.contiguous();
    const at::Tensor out = at::empty_like(x);
    const at::Tensor mean = at::empty({x.size(0)}, x.options().dtype(wide_type(x)));
    const at::Tensor rstd = at::empty_like(mean);
    switch (path_for(x)) {
      case Path::kCpu:
        (x.scalar_type() == at::kFloat
             ? norm_modulate_on_cpu<float>
             : norm_modulate_on_cpu<double>)(x, shift_ND, scale_ND, segments, eps, out, mean, rstd);
        zero_padding(out, segments);
        break;
      case Path::kCuda:
        cuda_kernels()->norm_modulate(cuda_type(x), cuda_row(x, shift_ND, segments), x.const_data_ptr(),
                                      shift_ND.const_data_ptr(), scale_ND.const_data_ptr(), out.data_ptr(),
                                      mean.data_ptr<float>(), rstd.data_ptr<float>(), eps);
        break;
      case Path::kAten:
        norm_modulate_by_aten(x, shift_ND, scale_ND, segments, eps, out, mean, rstd);
        zero_padding(out, segments);
        break;
    }
    ctx->save_for_backward({x, scale_ND, mean, rstd});
    save_segments(*ctx, "segments", segments);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &scale = saved[1], &mean = saved[2], &rstd = saved[3];
    const Segments segments = saved_segments(*ctx, "segments");
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor grad_x = at::empty_like(x);
    at::Tensor sums;
    switch (path_for(x)) {
      case Path::kCpu:
        sums = (x.scalar_type() == at::kFloat
                    ? norm_modulate_backward_on_cpu<float>
                    : norm_modulate_backward_on_cpu<double>)(grad, x, scale, mean, rstd, segments, grad_x);
        zero_padding(grad_x, segments);
        break;
      case Path::kCuda: {
        const CudaRow row = cuda_row(x, scale, segments);
        sums = at::zeros({2, segments.num_segments(), x.size(1)}, mean.options());
        const at::Tensor partial = at::empty({cuda_partial_size(row)}, mean.options());
        cuda_kernels()->norm_modulate_backward(
            cuda_type(x), row, grad.const_data_ptr(), x.const_data_ptr(), scale.const_data_ptr(),
            mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), grad_x.data_ptr(), sums[0].data_ptr<float>(),
            sums[1].data_ptr<float>(), partial.data_ptr<float>());
        break;
      }
      case Path::kAten:
        sums = norm_modulate_backward_by_aten(grad, x, scale, mean, rstd, segments, grad_x);
        zero_padding(grad_x, segments);
        break;
    }
    return {grad_x, sums[0].to(scale.scalar_type()), sums[1].to(scale.scalar_type()), {}, {}};
  }
};

// --- gate_residual -----------------------------------------------------------------------------------------------

template <typename T>
void gate_residual_on_cpu(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& branch,
                          const Segments& segments, const at::Tensor& out) {
  const std::int64_t width = x.size(1);
  for_blocks(row_blocks(segments), [&](const RowBlock& block, std::int64_t) {
    const std::int64_t at = block.begin * width;
    cpu_kernels<T>().gate_residual(x.const_data_ptr<T>() + at,
                                   gate.const_data_ptr<T>() + block.segment * gate.stride(0),
                                   branch.const_data_ptr<T>() + at, out.data_ptr<T>() + at, block.count, width);
  });
}

template <typename T>
at::Tensor gate_residual_backward_on_cpu(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& branch,
                                         const Segments& segments, const at::Tensor& grad_branch) {
  const std::int64_t width = branch.size(1);
  const std::vector<RowBlock> blocks = row_blocks(segments);
  const at::Tensor partial = at::empty({static_cast<std::int64_t>(blocks.size()), 1, width}, branch.options());
  for_blocks(blocks, [&](const RowBlock& block, std::int64_t i) {
    const std::int64_t at = block.begin * width;
    cpu_kernels<T>().gate_residual_backward(grad.const_data_ptr<T>() + at,
                                            gate.const_data_ptr<T>() + block.segment * gate.stride(0),
                                            branch.const_data_ptr<T>() + at, grad_branch.data_ptr<T>() + at,
                                            partial.data_ptr<T>() + i * width, block.count, width);
  });
  return sum_blocks(partial, blocks, segments.num_segments())[0];
}

void gate_residual_by_aten(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& branch,
                           const Segments& segments, const at::Tensor& out) {
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    const std::int64_t begin = segments.offsets[static_cast<std::size_t>(i)];
    at::Tensor target = out.narrow(0, begin, segments.length(i));
    at::addcmul_out(target, x.narrow(0, begin, segments.length(i)), branch.narrow(0, begin, segments.length(i)),
                    gate[i]);
  }
}

at::Tensor gate_residual_backward_by_aten(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& branch,
                                          const Segments& segments, const at::Tensor& grad_branch) {
  const at::Tensor sums =
      at::zeros({segments.num_segments(), branch.size(1)}, branch.options().dtype(wide_type(branch)));
  for (std::int64_t i = 0; i < segments.num_segments(); ++i) {
    const std::int64_t begin = segments.offsets[static_cast<std::size_t>(i)];
    const at::Tensor grad_rows = grad.narrow(0, begin, segments.length(i));
    at::Tensor target = grad_branch.narrow(0, begin, segments.length(i));
    at::mul_out(target, grad_rows, gate[i]);
    sums[i].copy_((grad_rows.to(sums.scalar_type()) * branch.narrow(0, begin, segments.length(i))).sum(0));
  }
  return sums;
}

struct GateResidual : torch::autograd::Function<GateResidual> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& gate_ND,
                            const at::Tensor& branch_TD, const Segments& segments) {
    const at::Tensor x = x_TD.contiguous();
    const at::Tensor branch = branch_TD.contiguous();
    const at::Tensor out = at::empty_like(x);
    const Path path = path_for(x);
    if (path == Path::kCuda) {
      cuda_kernels()->gate_residual(cuda_type(x), cuda_row(x, gate_ND, segments), x.const_data_ptr(),
                                    gate_ND.const_data_ptr(), branch.const_data_ptr(), out.data_ptr());
    } else if (path == Path::kAten) {
      gate_residual_by_aten(x, gate_ND, branch, segments, out);
    } else {
      (x.scalar_type() == at::kFloat ? gate_residual_on_cpu<float> : gate_residual_on_cpu<double>)(x, gate_ND, branch,
                                                                                                   segments, out);
    }
    if (const std::int64_t padding = x.size(0) - segments.num_tokens(); path != Path::kCuda && padding > 0) {
      out.narrow(0, segments.num_tokens(), padding).copy_(x.narrow(0, segments.num_tokens(), padding));
    }
    ctx->save_for_backward({gate_ND, branch});
    save_segments(*ctx, "segments", segments);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &branch = saved[1];
    const Segments segments = saved_segments(*ctx, "segments");
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor grad_branch = at::empty_like(branch);
    at::Tensor grad_gate;
    const Path path = path_for(branch);
    if (path == Path::kCuda) {
      const CudaRow row = cuda_row(branch, gate, segments);
      const at::TensorOptions options = branch.options().dtype(at::kFloat);
      grad_gate = at::zeros({segments.num_segments(), branch.size(1)}, options);
      const at::Tensor partial = at::empty({cuda_partial_size(row)}, options);
      cuda_kernels()->gate_residual_backward(cuda_type(branch), row, grad.const_data_ptr(), gate.const_data_ptr(),
                                             branch.const_data_ptr(), grad_branch.data_ptr(),
                                             grad_gate.data_ptr<float>(), partial.data_ptr<float>());
    } else {
      const auto backward_of = path == Path::kAten                  ? gate_residual_backward_by_aten
                               : branch.scalar_type() == at::kFloat ? gate_residual_backward_on_cpu<float>
                                                                    : gate_residual_backward_on_cpu<double>;
      grad_gate = backward_of(grad, gate, branch, segments, grad_branch);
      zero_padding(grad_branch, segments);
    }
    return {grad, grad_gate.to(gate.scalar_type()), grad_branch, {}};
  }
};

}  // namespace

at::Tensor norm_modulate(const at::Tensor& x_TD, const at::Tensor& shift_ND, const at::Tensor& scale_ND,
                         const Segments& segments, double eps) {
  check("norm_modulate", x_TD, shift_ND, segments);
  check("norm_modulate", x_TD, scale_ND, segments);
  if (shift_ND.stride(0) != scale_ND.stride(0)) {  // the kernels take one distance for both
    return NormModulate::apply(x_TD, shift_ND.contiguous(), scale_ND.contiguous(), segments, eps);
  }
  return NormModulate::apply(x_TD, shift_ND, scale_ND, segments, eps);
}

at::Tensor gate_residual(const at::Tensor& x_TD, const at::Tensor& gate_ND, const at::Tensor& branch_TD,
                         const Segments& segments) {
  check("gate_residual", x_TD, gate_ND, segments);
  check("gate_residual", branch_TD, gate_ND, segments);
  return GateResidual::apply(x_TD, gate_ND, branch_TD, segments);
}

}  // namespace dfm::ops
