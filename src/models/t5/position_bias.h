#pragma once
// T5's relative position bias: one number a head and bucket of distances, shared by all layers.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dfm::models {

// The bucket of key - query = -(max_length - 1) ... max_length - 1, both ways (bidirectional): the nearest
// num_buckets / 4 distances have one each, further ones share buckets that grow in proportion up to max_distance.
std::vector<std::int64_t> position_buckets(std::int64_t num_buckets, std::int64_t max_distance,
                                           std::int64_t max_length);

// [heads, 2 max_length - 1] of the table [num_buckets, heads]: the bias of each distance.
at::Tensor bias_of_distances(const at::Tensor& table_BH, const std::vector<std::int64_t>& buckets);

// [H, length, length], row = query, column = key. Rows lie `length` rounded up to a multiple of 16 apart: fused
// attention kernels ask for that alignment.
at::Tensor bias_of_length(const at::Tensor& distances_HO, std::int64_t length);

}  // namespace dfm::models
