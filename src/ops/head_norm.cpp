// Legend: T rows, H heads, P parts of a head, d head size.
#include "dfm/ops/head_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "dfm/base/error.h"
#include "ops/cpu_kernels.h"
#include "ops/parallel_for.h"

namespace dfm::ops {
namespace {

constexpr std::int64_t kRowsPerBlock = 64;  // of the sums over rows: fixed, so that no result depends on threads

bool on_cpu(const at::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

at::ScalarType wide_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Where one part lies in x_THPd.
struct Part {
  std::int64_t heads, d, stride, head_stride, offset;
};
Part part_of(const at::Tensor& x_THPd, std::int64_t part) {
  return {x_THPd.size(1), x_THPd.size(3), x_THPd.stride(0), x_THPd.stride(1), part * x_THPd.stride(2)};
}

template <typename T>
void forward_on_cpu(const at::Tensor& x_THPd, std::int64_t part, const at::Tensor& weight, const at::Tensor& out,
                    const at::Tensor& rstd, double eps) {
  const Part p = part_of(x_THPd, part);
  const T* x = x_THPd.const_data_ptr<T>() + p.offset;
  parallel_for(x_THPd.size(0), kRowsPerBlock, [&](std::int64_t begin, std::int64_t end) {
    cpu_kernels<T>().head_norm(x + begin * p.stride, weight.const_data_ptr<T>(),
                               out.data_ptr<T>() + begin * p.heads * p.d, rstd.data_ptr<T>() + begin * p.heads,
                               end - begin, p.heads, p.d, p.stride, p.head_stride, eps);
  });
}

// Returns the gradient of the weight.
template <typename T>
at::Tensor backward_on_cpu(const at::Tensor& grad_THd, const at::Tensor& x_THPd, std::int64_t part,
                           const at::Tensor& weight, const at::Tensor& rstd, const at::Tensor& grad_x_THPd) {
  const Part p = part_of(x_THPd, part);
  const std::int64_t rows = x_THPd.size(0);
  const std::int64_t blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const at::Tensor partial = at::empty({blocks, p.d}, x_THPd.options());
  parallel_for(blocks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kRowsPerBlock;
      const std::int64_t count = std::min(kRowsPerBlock, rows - begin);
      cpu_kernels<T>().head_norm_backward(
          grad_THd.const_data_ptr<T>() + begin * p.heads * p.d,
          x_THPd.const_data_ptr<T>() + p.offset + begin * p.stride, weight.const_data_ptr<T>(),
          rstd.const_data_ptr<T>() + begin * p.heads, grad_x_THPd.data_ptr<T>() + p.offset + begin * p.stride,
          partial.data_ptr<T>() + block * p.d, count, p.heads, p.d, p.stride, p.head_stride);
    }
  });
  return partial.sum(0);
}

struct SplitHeadsNorm : torch::autograd::Function<SplitHeadsNorm> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x_TC,
                                                at::TensorList weights, std::int64_t num_heads, std::int64_t num_parts,
                                                double eps) {
    const at::Tensor x_THPd =
        x_TC.detach().contiguous().view({x_TC.size(0), num_heads, num_parts, x_TC.size(1) / (num_heads * num_parts)});
    torch::autograd::variable_list outputs, saved{x_THPd};
    for (std::int64_t part = 0; part < num_parts; ++part) {
      const at::Tensor part_THd = x_THPd.select(2, part);
      if (part >= static_cast<std::int64_t>(weights.size())) {
        outputs.push_back(part_THd);
        continue;
      }
      const at::Tensor& weight = weights[static_cast<std::size_t>(part)];
      at::Tensor rstd_TH1, out;
      if (on_cpu(x_THPd)) {
        out = at::empty({x_TC.size(0), num_heads, x_THPd.size(3)}, x_TC.options());
        rstd_TH1 = at::empty({x_TC.size(0), num_heads, 1}, x_TC.options());
        if (x_TC.scalar_type() == at::kFloat) {
          forward_on_cpu<float>(x_THPd, part, weight, out, rstd_TH1, eps);
        } else {
          forward_on_cpu<double>(x_THPd, part, weight, out, rstd_TH1, eps);
        }
      } else {
        const at::Tensor wide = part_THd.to(wide_type(x_TC));
        rstd_TH1 = wide.square().mean(-1, true).add_(eps).rsqrt_();
        out = (wide * rstd_TH1).mul_(weight).to(x_TC.scalar_type());
      }
      outputs.push_back(out);
      saved.push_back(weight);
      saved.push_back(rstd_TH1);
    }
    ctx->save_for_backward(saved);
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const torch::autograd::variable_list saved = ctx->get_saved_variables();
    const at::Tensor& x_THPd = saved[0];
    const std::size_t num_weights = (saved.size() - 1) / 2;
    const at::Tensor grad_x_THPd = at::empty_like(x_THPd);
    torch::autograd::variable_list grad_weights;
    for (std::size_t part = 0; part < grads.size(); ++part) {
      const auto index = static_cast<std::int64_t>(part);
      const at::Tensor target_THd = grad_x_THPd.select(2, index);
      if (!grads[part].defined()) {
        target_THd.zero_();
        if (part < num_weights) grad_weights.emplace_back();
        continue;
      }
      if (part >= num_weights) {
        target_THd.copy_(grads[part]);
        continue;
      }
      const at::Tensor& weight = saved[1 + 2 * part];
      const at::Tensor& rstd_TH1 = saved[2 + 2 * part];
      if (on_cpu(x_THPd)) {
        const at::Tensor grad_THd = grads[part].contiguous();
        grad_weights.push_back(x_THPd.scalar_type() == at::kFloat
                                   ? backward_on_cpu<float>(grad_THd, x_THPd, index, weight, rstd_TH1, grad_x_THPd)
                                   : backward_on_cpu<double>(grad_THd, x_THPd, index, weight, rstd_TH1, grad_x_THPd));
      } else {
        const at::Tensor normed = x_THPd.select(2, index) * rstd_TH1;
        const at::Tensor grad = grads[part].to(normed.scalar_type());
        grad_weights.push_back((grad * normed).sum(c10::IntArrayRef{0, 1}).to(weight.scalar_type()));
        const at::Tensor inner = grad * weight;
        target_THd.copy_(rstd_TH1 * (inner - normed * (inner * normed).mean(-1, true)));
      }
    }
    torch::autograd::variable_list result{grad_x_THPd.flatten(1)};
    result.insert(result.end(), grad_weights.begin(), grad_weights.end());
    result.resize(result.size() + 3);  // the three numbers
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> split_heads_norm(const at::Tensor& x_TC, std::int64_t num_heads, std::int64_t num_parts,
                                         const std::vector<at::Tensor>& weights_d, double eps) {
  if (x_TC.dim() != 2 || x_TC.size(1) % (num_heads * num_parts) != 0 ||
      static_cast<std::int64_t>(weights_d.size()) > num_parts) {
    throw InternalError("split_heads_norm: got a width of {}, want a multiple of {} heads x {} parts", x_TC.size(-1),
                        num_heads, num_parts);
  }
  return SplitHeadsNorm::apply(x_TC, at::TensorList(weights_d), num_heads, num_parts, eps);
}

}  // namespace dfm::ops
