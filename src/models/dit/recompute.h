#pragma once
// Activation recompute: forward keeps only the inputs, backward runs the function again with gradients on.
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace dfm::models {

// body(inputs) must be a pure function of `inputs` and of `parameters` (leaves that it reads by itself). It may be
// called again during backward, so it must not refer to what is gone by then.
at::Tensor recompute(std::function<at::Tensor(const std::vector<at::Tensor>&)> body,
                     const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters);

}  // namespace dfm::models
