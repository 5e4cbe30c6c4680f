#pragma once
// Activation recompute: forward keeps only the inputs, backward runs the function again with gradients on. A body may
// hold collectives: all ranks run them again, in the same order.
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace dfm::models {

// Must be a pure function of its inputs. It is called again during backward, so it must not refer to what is gone by
// then.
using RecomputeBody = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// body(inputs), of which nothing but the inputs is kept. `parameters`: leaves that the body reads by itself.
at::Tensor recompute(RecomputeBody body, const std::vector<at::Tensor>& inputs,
                     const std::vector<at::Tensor>& parameters);

// at::linear(body(inputs), weight), of which the inputs are kept but not the value of the body. The matrix product is
// not computed again: its backward needs that value and the weight alone. body gives two dimensions.
at::Tensor linear_recompute(RecomputeBody body, const std::vector<at::Tensor>& inputs, const at::Tensor& weight);

}  // namespace dfm::models
