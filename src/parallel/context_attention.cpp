// Legend: T this rank's tokens of the row, H heads, d head size; P ranks of the context group.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "dfm/base/error.h"
#include "dfm/ops/attention.h"
#include "dfm/parallel/regions.h"
#include "parallel/saved_object.h"

namespace dfm::parallel {
namespace {

using ops::AttentionGradients;
using ops::AttentionPart;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// --- a2a: tokens exchanged for heads
// ----------------------------------------------------------------------------------

// [T, n, H, d] of this rank's tokens to [P T, n, H / P, d] of this rank's heads.
at::Tensor tokens_to_heads(const at::Tensor& x_TnHd, comm::Group& group) {
  const std::int64_t ranks = group.size(), heads = x_TnHd.size(2) / ranks;
  const at::Tensor in = x_TnHd.unflatten(2, {ranks, heads}).permute({2, 0, 1, 3, 4}).contiguous();
  const at::Tensor out = at::empty_like(in);
  group.all_to_all(out, in).wait();
  return out.flatten(0, 1);
}

// The way back.
at::Tensor heads_to_tokens(const at::Tensor& x_RnHd, comm::Group& group) {
  const std::int64_t ranks = group.size();
  const at::Tensor in = x_RnHd.contiguous().unflatten(0, {ranks, x_RnHd.size(0) / ranks});
  const at::Tensor out = at::empty_like(in);
  group.all_to_all(out, in).wait();
  return out.permute({1, 2, 0, 3, 4}).flatten(2, 3);
}

struct TokensForHeads : torch::autograd::Function<TokensForHeads> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const comm::GroupPtr& group, bool to_heads) {
    save_object(*ctx, "group", group);
    ctx->saved_data["to_heads"] = to_heads;
    return to_heads ? tokens_to_heads(x, *group) : heads_to_tokens(x, *group);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const comm::GroupPtr group = saved_object<comm::GroupPtr>(*ctx, "group");
    const bool to_heads = ctx->saved_data.at("to_heads").toBool();
    return {to_heads ? heads_to_tokens(grads[0], *group) : tokens_to_heads(grads[0], *group), {}, {}};
  }
};

at::Tensor attention_over_heads(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                                const RowSegments& segments, const comm::GroupPtr& group) {
  if (q_THd.size(1) % group->size() != 0) {
    throw InternalError("context attention: got {} heads, want a multiple of {} ranks", q_THd.size(1), group->size());
  }
  const std::vector<at::Tensor> qkv =
      TokensForHeads::apply(at::stack({q_THd, k_THd, v_THd}, 1), group, /*to_heads=*/true).unbind(1);
  const at::Tensor out = ops::packed_attention(qkv[0], qkv[1], qkv[2], segments.row, segments.row);
  return TokensForHeads::apply(out.unsqueeze(1), group, /*to_heads=*/false).squeeze(1);
}

// --- p2p: keys and values come from the ranks that have them
// ----------------------------------------------------------

// This rank's tokens of a shared segment; contiguous where x is.
at::Tensor my_rows(const at::Tensor& x, const SharedSegment& shared) {
  return x.narrow(0, shared.mine_first, shared.mine.num_tokens());
}

// In step i = 1 .. P - 1 each rank computes with the keys and values of the rank i before it, and its own go to the
// rank i after it.
struct Step {
  int to, from;
  const SharedSegment &sent, &received;

  Step(const RowSegments& segments, const comm::Group& group, int i)
      : to((group.rank() + i) % group.size()),
        from((group.rank() - i + group.size()) % group.size()),
        sent(segments.shared.at(static_cast<std::size_t>(to))),
        received(segments.shared.at(static_cast<std::size_t>(from))) {}
};

bool shares_any(const RowSegments& segments) {
  for (const SharedSegment& shared : segments.shared) {
    if (!shared.is_empty()) return true;
  }
  return false;
}

// Rows on their way. Both ends know which segments they share, so where there is none nobody waits for anything.
class Transit {
 public:
  Transit() = default;
  // sent, received: contiguous, or undefined for none.
  Transit(comm::Group& group, int to, const at::Tensor& sent, int from, const at::Tensor& received)
      : sent_(sent), received_(received) {
    std::vector<comm::Transfer> sends, receives;
    if (sent.defined()) sends.push_back({to, sent});
    if (received.defined()) receives.push_back({from, received});
    if (!sends.empty() || !receives.empty()) work_ = group.exchange(sends, receives);
  }
  // What has come; undefined for nothing.
  [[nodiscard]] at::Tensor wait() const {
    work_.wait();
    return received_;
  }

 private:
  at::Tensor sent_, received_;
  comm::Work work_;
};

// kv: this rank's keys and values. What comes is [their tokens of the shared segment, 2, H, d].
Transit exchange_keys(const at::Tensor& kv_T2Hd, const RowSegments& segments, comm::Group& group, int i) {
  if (i >= group.size()) return {};
  const Step step(segments, group, i);
  at::Tensor sent, received;
  if (!step.sent.is_empty()) sent = my_rows(kv_T2Hd, step.sent);
  if (!step.received.is_empty()) {
    std::vector<std::int64_t> sizes = kv_T2Hd.sizes().vec();
    sizes[0] = step.received.theirs.num_tokens();
    received = at::empty(sizes, kv_T2Hd.options());
  }
  return {group, step.to, sent, step.from, received};
}

// Adds `part` to what softmax attention over other keys has given for the same queries.
void merge(const at::Tensor& out_THd, const at::Tensor& lse_HT, const AttentionPart& part) {
  const at::Tensor longer = at::logaddexp(lse_HT, part.lse_HT);
  const auto share = [&](const at::Tensor& lse) { return (lse - longer).exp_().t().unsqueeze(-1); };
  out_THd.mul_(share(lse_HT)).add_(part.out_THd * share(part.lse_HT));
  lse_HT.copy_(longer);
}

AttentionPart attend_by_exchange(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const RowSegments& segments, comm::Group& group) {
  if (!shares_any(segments)) return ops::packed_attention_forward(q, k, v, segments.context, segments.context);
  const at::Tensor kv = at::stack({k, v}, 1);
  Transit next = exchange_keys(kv, segments, group, 1);
  AttentionPart sum = ops::packed_attention_forward(q, k, v, segments.context, segments.context);
  sum.out_THd = sum.out_THd.to(sum.lse_HT.scalar_type());
  for (int i = 1; i < group.size(); ++i) {
    const at::Tensor come = next.wait();
    next = exchange_keys(kv, segments, group, i + 1);
    if (!come.defined()) continue;
    const SharedSegment& shared = Step(segments, group, i).received;
    const AttentionPart part = ops::packed_attention_forward(my_rows(q, shared), come.select(1, 0), come.select(1, 1),
                                                             shared.mine, shared.theirs);
    merge(my_rows(sum.out_THd, shared), sum.lse_HT.narrow(1, shared.mine_first, shared.mine.num_tokens()), part);
  }
  sum.out_THd = sum.out_THd.to(q.scalar_type());
  return sum;
}

// Gradients in float32 (float64 for float64), in which what all ranks found is added up.
class GradientSums {
 public:
  GradientSums(const AttentionGradients& own, at::ScalarType dtype)
      : q_THd(own.q_THd.to(dtype)),
        kv_T2Hd(at::stack({own.k_LHd, own.v_LHd}, 1).to(dtype)),
        dtype_(own.q_THd.scalar_type()) {}
  [[nodiscard]] AttentionGradients rounded() const {
    return {q_THd.to(dtype_), kv_T2Hd.select(1, 0).to(dtype_), kv_T2Hd.select(1, 1).to(dtype_)};
  }
  at::Tensor q_THd, kv_T2Hd;

 private:
  at::ScalarType dtype_;
};

AttentionGradients gradients_by_exchange(const at::Tensor& grad, const variable_list& saved,
                                         const RowSegments& segments, comm::Group& group) {
  const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &lse = saved[4];
  const auto own = [&] {
    return ops::packed_attention_backward(grad, q, k, v, out, lse, segments.context, segments.context);
  };
  if (!shares_any(segments)) return own();
  const at::Tensor kv = at::stack({k, v}, 1);
  Transit next = exchange_keys(kv, segments, group, 1);
  GradientSums sums(own(), lse.scalar_type());
  Transit home;  // the gradients of step i - 1
  const auto take_home = [&](int i) {
    const at::Tensor come = home.wait();
    if (come.defined()) my_rows(sums.kv_T2Hd, Step(segments, group, i).sent).add_(come);
  };
  for (int i = 1; i < group.size(); ++i) {
    const at::Tensor come = next.wait();
    next = exchange_keys(kv, segments, group, i + 1);
    const Step step(segments, group, i);
    at::Tensor found, wanted;
    if (come.defined()) {
      const SharedSegment& shared = step.received;
      const AttentionGradients part = ops::packed_attention_backward(
          my_rows(grad, shared), my_rows(q, shared), come.select(1, 0), come.select(1, 1), my_rows(out, shared),
          lse.narrow(1, shared.mine_first, shared.mine.num_tokens()), shared.mine, shared.theirs);
      my_rows(sums.q_THd, shared).add_(part.q_THd);
      found = at::stack({part.k_LHd, part.v_LHd}, 1);
    }
    if (i > 1) take_home(i - 1);
    if (!step.sent.is_empty()) {
      const at::Tensor mine = my_rows(kv, step.sent);
      wanted = at::empty(mine.sizes(), mine.options());
    }
    home = Transit(group, step.from, found, step.to, wanted);
  }
  take_home(group.size() - 1);
  return sums.rounded();
}

struct AttentionByExchange : torch::autograd::Function<AttentionByExchange> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const RowSegments& segments, const comm::GroupPtr& group) {
    const AttentionPart whole = attend_by_exchange(q, k, v, segments, *group);
    ctx->save_for_backward({q, k, v, whole.out_THd, whole.lse_HT});
    save_object(*ctx, "segments", segments);
    save_object(*ctx, "group", group);
    return whole.out_THd;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const AttentionGradients found = gradients_by_exchange(grads[0].contiguous(), ctx->get_saved_variables(),
                                                           saved_object<RowSegments>(*ctx, "segments"),
                                                           *saved_object<comm::GroupPtr>(*ctx, "group"));
    return {found.q_THd, found.k_LHd, found.v_LHd, {}, {}};
  }
};

}  // namespace

at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                             const RowSegments& segments, const Parallel& parallel) {
  if (parallel.context->is_alone()) {
    return ops::packed_attention(q_THd, k_THd, v_THd, segments.context, segments.context);
  }
  return parallel.context_comm == ContextComm::kA2a
             ? attention_over_heads(q_THd, k_THd, v_THd, segments, parallel.context)
             : AttentionByExchange::apply(q_THd, k_THd, v_THd, segments, parallel.context);
}

}  // namespace dfm::parallel
