#pragma once
// Segments between the forward and the backward of an autograd function.
#include <torch/csrc/autograd/custom_function.h>

#include <string>

#include "dfm/ops/segments.h"

namespace dfm::ops {

inline void save_segments(torch::autograd::AutogradContext& ctx, const std::string& name, const Segments& segments) {
  ctx.saved_data[name + ".offsets"] = segments.offsets;
  ctx.saved_data[name + ".cu_seqlens"] = segments.cu_seqlens;
  ctx.saved_data[name + ".max_length"] = segments.max_length;
}

inline Segments saved_segments(torch::autograd::AutogradContext& ctx, const std::string& name) {
  Segments segments;
  segments.offsets = ctx.saved_data.at(name + ".offsets").toIntVector();
  segments.cu_seqlens = ctx.saved_data.at(name + ".cu_seqlens").toTensor();
  segments.max_length = ctx.saved_data.at(name + ".max_length").toInt();
  return segments;
}

}  // namespace dfm::ops
