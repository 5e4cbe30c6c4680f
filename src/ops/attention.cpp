// Legend: T query rows, L key rows, H heads, d head size; B segments of a run, S rows of each.
//
// The zero rows after a segment's keys (score 0, value 0, weight w together) need no kernel of their own. From a
// library attention that returns the output O and the logarithm of the softmax's denominator, lse:
//   lse' = log(exp(lse) + w),  O' = O exp(lse - lse').
// Backward recomputes P = exp(score - lse) and delta = rowsum(dO * O), so the library's backward, given O' and lse', is
// already that of the longer softmax.
#include "dfm/ops/attention.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <limits>

#include "dfm/base/error.h"
#include "ops/saved_segments.h"

namespace dfm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Adjacent segments of equal lengths: one batched call without copies.
struct Run {
  std::int64_t count = 0;
  std::int64_t q_begin = 0, q_length = 0;
  std::int64_t kv_begin = 0, kv_length = 0;
};

// Runs that have both queries and keys.
std::vector<Run> find_runs(const Segments& q, const Segments& kv) {
  std::vector<Run> runs;
  for (std::int64_t i = 0; i < q.num_segments(); ++i) {
    if (q.length(i) == 0 || kv.length(i) == 0) continue;
    const auto at = static_cast<std::size_t>(i);
    const Run next{1, q.offsets[at], q.length(i), kv.offsets[at], kv.length(i)};
    const bool joins = !runs.empty() && runs.back().q_length == next.q_length &&
                       runs.back().kv_length == next.kv_length &&
                       runs.back().q_begin + runs.back().count * next.q_length == next.q_begin &&
                       runs.back().kv_begin + runs.back().count * next.kv_length == next.kv_begin;
    if (joins) {
      ++runs.back().count;
    } else {
      runs.push_back(next);
    }
  }
  return runs;
}

// [rows, H, d] to [B, H, S, d], a view.
at::Tensor rows_of(const at::Tensor& x_THd, std::int64_t begin, std::int64_t count, std::int64_t length) {
  return x_THd.narrow(0, begin, count * length).unflatten(0, {count, length}).transpose(1, 2);
}
at::Tensor q_rows(const at::Tensor& x, const Run& run) { return rows_of(x, run.q_begin, run.count, run.q_length); }
at::Tensor kv_rows(const at::Tensor& x, const Run& run) { return rows_of(x, run.kv_begin, run.count, run.kv_length); }

// --- plain attention by ATen's operations, any device and dtype, a block of queries at a time -----------------------

at::Tensor widened(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

std::int64_t query_block(const at::Tensor& q_BHSd, const at::Tensor& k_BHLd) {
  constexpr std::int64_t kMostScores = std::int64_t{1} << 27;
  return std::max<std::int64_t>(1, kMostScores / (q_BHSd.size(0) * q_BHSd.size(1) * k_BHLd.size(2)));
}

std::pair<at::Tensor, at::Tensor> plain_forward(const at::Tensor& q_BHSd, const at::Tensor& k_BHLd,
                                                const at::Tensor& v_BHLd, double scale) {
  const at::Tensor k = widened(k_BHLd), v = widened(v_BHLd);
  std::vector<at::Tensor> outputs, denominators;
  for (const at::Tensor& q : q_BHSd.split(query_block(q_BHSd, k), 2)) {
    const at::Tensor scores = at::matmul(widened(q) * scale, k.transpose(-2, -1));
    const at::Tensor lse = at::logsumexp(scores, -1);
    outputs.push_back(at::matmul((scores - lse.unsqueeze(-1)).exp_(), v).to(q.scalar_type()));
    denominators.push_back(lse);
  }
  return {at::cat(outputs, 2), at::cat(denominators, 2)};
}

std::array<at::Tensor, 3> plain_backward(const at::Tensor& grad, const at::Tensor& q_BHSd, const at::Tensor& k_BHLd,
                                         const at::Tensor& v_BHLd, const at::Tensor& out, const at::Tensor& lse,
                                         double scale) {
  const at::Tensor k = widened(k_BHLd), v = widened(v_BHLd);
  const at::Tensor grad_k = at::zeros_like(k), grad_v = at::zeros_like(v);
  std::vector<at::Tensor> grad_q;
  const std::int64_t block = query_block(q_BHSd, k);
  for (std::int64_t begin = 0; begin < q_BHSd.size(2); begin += block) {
    const std::int64_t count = std::min(block, q_BHSd.size(2) - begin);
    const at::Tensor q = widened(q_BHSd.narrow(2, begin, count)) * scale;
    const at::Tensor grad_out = widened(grad.narrow(2, begin, count));
    const at::Tensor weights = (at::matmul(q, k.transpose(-2, -1)) - lse.narrow(2, begin, count).unsqueeze(-1)).exp_();
    const at::Tensor delta = (grad_out * out.narrow(2, begin, count)).sum(-1, true);
    const at::Tensor grad_scores = (at::matmul(grad_out, v.transpose(-2, -1)) - delta).mul_(weights);
    grad_v.add_(at::matmul(weights.transpose(-2, -1), grad_out));
    grad_k.add_(at::matmul(grad_scores.transpose(-2, -1), q));
    grad_q.push_back(at::matmul(grad_scores, k) * scale);
  }
  return {at::cat(grad_q, 2), grad_k, grad_v};
}

// --- by runs: LibTorch's CPU flash attention, or the plain one -------------------------------------------------------

std::pair<at::Tensor, at::Tensor> run_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                              double scale) {
  if (!q.is_cpu()) return plain_forward(q, k, v, scale);
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, std::nullopt, scale);
  return {out, lse};
}

std::array<at::Tensor, 3> run_backward(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                                       double scale) {
  if (!q.is_cpu()) return plain_backward(grad, q, k, v, out, lse, scale);
  auto [grad_q, grad_k, grad_v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0,
                                                                                           false, std::nullopt, scale);
  return {grad_q, grad_k, grad_v};
}

double zero_rows(std::int64_t total_keys, std::int64_t length) {
  if (length > total_keys) throw InternalError("packed_attention: got {} keys, want at most {}", length, total_keys);
  return static_cast<double>(total_keys - length);
}

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// A run's part of the lse, [B, H, S], a view.
at::Tensor lse_rows(const at::Tensor& lse_HT, const Run& run) {
  return lse_HT.narrow(1, run.q_begin, run.count * run.q_length)
      .unflatten(1, {run.count, run.q_length})
      .transpose(0, 1);
}

AttentionPart forward_by_runs(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                              const Segments& q_segments, const Segments& kv_segments, std::int64_t total_keys) {
  const double scale = 1 / std::sqrt(static_cast<double>(q_THd.size(2)));
  const at::TensorOptions options = q_THd.options();
  const auto lse_type = q_THd.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::vector<Run> runs = find_runs(q_segments, kv_segments);
  std::int64_t covered = 0;
  for (const Run& run : runs) covered += run.count * run.q_length;
  AttentionPart result{at::empty(q_THd.sizes(), options),
                       at::empty({q_THd.size(1), q_THd.size(0)}, options.dtype(lse_type))};
  if (covered < q_THd.size(0)) {
    result.out_THd.zero_();
    result.lse_HT.fill_(kMinusInfinity);
  }
  for (const Run& run : runs) {
    auto [part, lse] = run_forward(q_rows(q_THd, run), kv_rows(k_LHd, run), kv_rows(v_LHd, run), scale);
    at::Tensor target = q_rows(result.out_THd, run);
    const double weight = total_keys < 0 ? 0 : zero_rows(total_keys, run.kv_length);
    if (weight > 0) {
      const at::Tensor longer = at::logaddexp(lse, at::full({}, std::log(weight), lse.options()));
      at::mul_out(target, part, (lse - longer).exp_().to(part.scalar_type()).unsqueeze(-1));
      lse_rows(result.lse_HT, run).copy_(longer);
    } else {
      target.copy_(part);
      lse_rows(result.lse_HT, run).copy_(lse);
    }
  }
  return result;
}

AttentionGradients backward_by_runs(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const AttentionPart& whole, const Segments& q_segments,
                                    const Segments& kv_segments) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(2)));
  const AttentionGradients result{at::zeros(q.sizes(), q.options()), at::zeros(k.sizes(), k.options()),
                                  at::zeros(v.sizes(), v.options())};
  for (const Run& run : find_runs(q_segments, kv_segments)) {
    const auto parts = run_backward(q_rows(grad, run), q_rows(q, run), kv_rows(k, run), kv_rows(v, run),
                                    q_rows(whole.out_THd, run), lse_rows(whole.lse_HT, run), scale);
    q_rows(result.q_THd, run).copy_(parts[0]);
    kv_rows(result.k_LHd, run).copy_(parts[1]);
    kv_rows(result.v_LHd, run).copy_(parts[2]);
  }
  return result;
}

// --- CUDA: LibTorch's flash attention on packed rows -----------------------------------------------------------------

bool uses_flash(const at::Tensor& q_THd, const Segments& q_segments, const Segments& kv_segments) {
  return q_THd.is_cuda() && kv_segments.max_length > 0 && q_segments.max_length > 0 && q_THd.size(2) % 8 == 0 &&
         q_THd.size(2) <= 256 && (q_THd.scalar_type() == at::kBFloat16 || q_THd.scalar_type() == at::kHalf);
}

// log of the number of zero rows of each query's segment [T]; -inf for none, and for padding.
at::Tensor log_zero_rows(const at::Tensor& q_THd, const Segments& q_segments, const Segments& kv_segments,
                         std::int64_t total_keys) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < kv_segments.num_segments(); ++i) {
    values.push_back(static_cast<float>(std::log(zero_rows(total_keys, kv_segments.length(i)))));
  }
  const at::Tensor of_segment = at::tensor(values, at::kFloat).to(q_THd.device(), /*non_blocking=*/true);
  const at::Tensor counts = q_segments.cu_seqlens.diff().to(at::kLong);
  const at::Tensor of_row = of_segment.repeat_interleave(counts, std::nullopt, q_segments.num_tokens());
  return at::constant_pad_nd(of_row, {0, q_THd.size(0) - q_segments.num_tokens()}, kMinusInfinity);
}

void fill_after(const at::Tensor& x, std::int64_t dim, std::int64_t used, double value) {
  if (x.size(dim) > used) x.narrow(dim, used, x.size(dim) - used).fill_(value);
}

// The first segment that has queries but no keys; -1: none.
std::int64_t find_without_keys(const Segments& q, const Segments& kv) {
  for (std::int64_t i = 0; i < q.num_segments(); ++i) {
    if (q.length(i) > 0 && kv.length(i) == 0) return i;
  }
  return -1;
}

AttentionPart flash_forward(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                            const Segments& q_segments, const Segments& kv_segments, std::int64_t total_keys) {
  auto [out, lse_HT, rng_state, unused, debug] =
      at::_flash_attention_forward(q_THd, k_LHd, v_LHd, q_segments.cu_seqlens, kv_segments.cu_seqlens,
                                   q_segments.max_length, kv_segments.max_length, 0.0, false, false);
  if (lse_HT.dim() != 2 || lse_HT.size(1) != q_THd.size(0)) {
    throw InternalError("packed_attention: got lse {}, want heads x rows", fmt::join(lse_HT.sizes(), "x"));
  }
  // The library says +inf for a segment without keys; and what it leaves in padding rows is nothing to rely on.
  if (find_without_keys(q_segments, kv_segments) >= 0) lse_HT.masked_fill_(lse_HT.isposinf(), kMinusInfinity);
  fill_after(lse_HT, 1, q_segments.num_tokens(), kMinusInfinity);
  if (total_keys >= 0) {
    const at::Tensor longer = at::logaddexp(lse_HT, log_zero_rows(q_THd, q_segments, kv_segments, total_keys));
    out = (out * (lse_HT - longer).exp_().t().unsqueeze(-1)).to(q_THd.scalar_type());
    lse_HT = longer;
  }
  fill_after(out, 0, q_segments.num_tokens(), 0);
  return {out, lse_HT};
}

AttentionGradients flash_backward(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttentionPart& whole, const Segments& q_segments, const Segments& kv_segments) {
  // State of dropout, of which there is none.
  const at::Tensor rng_state = at::empty({2}, q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({}, q.options().dtype(at::kUInt64));
  auto [grad_q, grad_k, grad_v] = at::_flash_attention_backward(
      grad, q, k, v, whole.out_THd.contiguous(), whole.lse_HT.contiguous(), q_segments.cu_seqlens,
      kv_segments.cu_seqlens, q_segments.max_length, kv_segments.max_length, 0.0, false, rng_state, unused);
  fill_after(grad_q, 0, q_segments.num_tokens(), 0);
  fill_after(grad_k, 0, kv_segments.num_tokens(), 0);
  fill_after(grad_v, 0, kv_segments.num_tokens(), 0);
  return {grad_q, grad_k, grad_v};
}

// --- either
// -----------------------------------------------------------------------------------------------------------

AttentionPart forward_part(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& q_segments,
                           const Segments& kv_segments, std::int64_t total_keys) {
  return uses_flash(q, q_segments, kv_segments) ? flash_forward(q, k, v, q_segments, kv_segments, total_keys)
                                                : forward_by_runs(q, k, v, q_segments, kv_segments, total_keys);
}

AttentionGradients backward_part(const at::Tensor& grad_THd, const at::Tensor& q, const at::Tensor& k,
                                 const at::Tensor& v, const AttentionPart& whole, const Segments& q_segments,
                                 const Segments& kv_segments) {
  const at::Tensor grad = grad_THd.contiguous();
  return uses_flash(q, q_segments, kv_segments) ? flash_backward(grad, q, k, v, whole, q_segments, kv_segments)
                                                : backward_by_runs(grad, q, k, v, whole, q_segments, kv_segments);
}

struct PackedAttention : torch::autograd::Function<PackedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_THd, const at::Tensor& k_LHd,
                            const at::Tensor& v_LHd, const Segments& q_segments, const Segments& kv_segments,
                            std::int64_t total_keys) {
    const AttentionPart part = forward_part(q_THd, k_LHd, v_LHd, q_segments, kv_segments, total_keys);
    ctx->save_for_backward({q_THd, k_LHd, v_LHd, part.out_THd, part.lse_HT});
    save_segments(*ctx, "q", q_segments);
    save_segments(*ctx, "kv", kv_segments);
    return part.out_THd;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const AttentionGradients found = backward_part(grads[0], saved[0], saved[1], saved[2], {saved[3], saved[4]},
                                                   saved_segments(*ctx, "q"), saved_segments(*ctx, "kv"));
    return {found.q_THd, found.k_LHd, found.v_LHd, {}, {}, {}};
  }
};

void check_rows(const at::Tensor& q_THd, const at::Tensor& k_LHd, const Segments& q_segments,
                const Segments& kv_segments) {
  if (q_segments.num_segments() != kv_segments.num_segments() || q_THd.size(0) < q_segments.num_tokens() ||
      k_LHd.size(0) < kv_segments.num_tokens()) {
    throw InternalError("packed_attention: got {} query and {} key segments, want the same number within the rows",
                        q_segments.num_segments(), kv_segments.num_segments());
  }
}

}  // namespace

at::Tensor packed_attention(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                            const Segments& q_segments, const Segments& kv_segments,
                            std::optional<std::int64_t> total_keys) {
  check_rows(q_THd, k_LHd, q_segments, kv_segments);
  if (!total_keys) {
    if (const std::int64_t found = find_without_keys(q_segments, kv_segments); found >= 0) {
      throw InternalError("packed_attention: segment {}: got no key, want at least one", found);
    }
  }
  return PackedAttention::apply(q_THd, k_LHd, v_LHd, q_segments, kv_segments, total_keys.value_or(-1));
}

AttentionPart packed_attention_forward(const at::Tensor& q_THd, const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                                       const Segments& q_segments, const Segments& kv_segments) {
  check_rows(q_THd, k_LHd, q_segments, kv_segments);
  const at::NoGradGuard no_grad;
  return forward_part(q_THd, k_LHd, v_LHd, q_segments, kv_segments, -1);
}

AttentionGradients packed_attention_backward(const at::Tensor& grad_THd, const at::Tensor& q_THd,
                                             const at::Tensor& k_LHd, const at::Tensor& v_LHd,
                                             const at::Tensor& out_THd, const at::Tensor& lse_HT,
                                             const Segments& q_segments, const Segments& kv_segments) {
  check_rows(q_THd, k_LHd, q_segments, kv_segments);
  const at::NoGradGuard no_grad;
  return backward_part(grad_THd, q_THd, k_LHd, v_LHd, {out_THd, lse_HT}, q_segments, kv_segments);
}

}  // namespace dfm::ops
