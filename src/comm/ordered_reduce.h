#pragma once
// Sums and maxima in a fixed order, so that every rank and every run gets the same bits.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dfm/comm/group.h"

namespace dfm::comm {

// InternalError for a dtype without sums and maxima.
void require_reducible(at::ScalarType dtype);

// out[i] = inputs[0][i] op inputs[1][i] op ..., for `count` elements of `dtype`. bfloat16 is summed in float32 and
// rounded once. A maximum with a NaN is NaN. `out` may be one of the inputs.
void reduce_in_order(Reduce op, at::ScalarType dtype, const std::vector<const std::byte*>& inputs, std::byte* out,
                     std::int64_t count);

}  // namespace dfm::comm
