#pragma once
// Where a tensor changes between "whole on every rank" and "this rank's part". Each is a forward and its backward; on a
// group of one both are the identity. All ranks of the group call them in the same order.
//
//                               tensor parallel                   with sequence parallelism
//   enter_tensor_region         identity / sum                    gather tokens / reduce-scatter tokens
//   leave_tensor_region         sum / identity                    reduce-scatter tokens / gather tokens
#include <ATen/core/Tensor.h>

#include "dfm/parallel/parallel.h"
#include "dfm/parallel/row.h"

namespace dfm::parallel {

// Before a column layer. x: this rank's tokens between the matrices; result: the context rank's tokens, whole width.
at::Tensor enter_tensor_region(const at::Tensor& x, const Parallel& parallel);
// After a row layer: the way back, summed over the tensor group.
at::Tensor leave_tensor_region(const at::Tensor& x, const Parallel& parallel);
// For an input that every tensor rank has whole even with sequence parallelism (text rows): identity / sum.
at::Tensor enter_tensor_region_whole(const at::Tensor& x, const Parallel& parallel);

// ops::packed_attention of a row whose tokens are split over the context group: each rank has the queries, keys and
// values of its own tokens, [T / CP, H, d], and gets their outputs.
//   a2a  tokens are exchanged for heads (Jacobs et al., arXiv 2309.14509): H must be a multiple of CP
//   p2p  each rank computes with its own queries; the keys and values of the segments that it shares with others come
//        from these, one rank at a time and one ahead of the computing, and results are merged by running log-sum-exp
//        (Ring Attention, Liu et al., arXiv 2310.01889). Tokens of segments that end where they begin do not travel.
at::Tensor context_attention(const at::Tensor& q_THd, const at::Tensor& k_THd, const at::Tensor& v_THd,
                             const RowSegments& segments, const Parallel& parallel);

}  // namespace dfm::parallel
