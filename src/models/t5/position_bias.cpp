#include "models/t5/position_bias.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace dfm::models {
namespace {

constexpr std::int64_t kAlignment = 16;

// Integers decide where they can: a distance that is exactly at a bucket's edge must not fall below it by rounding.
std::int64_t bucket_of_distance(std::int64_t distance, std::int64_t num_buckets, std::int64_t max_distance) {
  const std::int64_t exact = num_buckets / 2;
  if (distance < exact) return distance;
  const auto ratio = [exact](std::int64_t n) { return std::log(static_cast<double>(n) / static_cast<double>(exact)); };
  const double position = ratio(distance) / ratio(max_distance) * static_cast<double>(num_buckets - exact);
  const auto step = static_cast<std::int64_t>(std::floor(position + 1e-9));
  return std::min(exact + step, num_buckets - 1);
}

}  // namespace

std::vector<std::int64_t> position_buckets(std::int64_t num_buckets, std::int64_t max_distance,
                                           std::int64_t max_length) {
  std::vector<std::int64_t> buckets;
  const std::int64_t half = num_buckets / 2;
  for (std::int64_t offset = -(max_length - 1); offset < max_length; ++offset) {
    buckets.push_back((offset > 0 ? half : 0) + bucket_of_distance(std::abs(offset), half, max_distance));
  }
  return buckets;
}

at::Tensor bias_of_distances(const at::Tensor& table_BH, const std::vector<std::int64_t>& buckets) {
  const at::Tensor index = at::tensor(buckets, at::kLong).to(table_BH.device());
  return table_BH.index_select(0, index).t().contiguous();
}

at::Tensor bias_of_length(const at::Tensor& distances_HO, std::int64_t length) {
  const std::int64_t zero = distances_HO.size(1) / 2;  // where the distance is 0
  const std::int64_t padded = (length + kAlignment - 1) / kAlignment * kAlignment;
  // Row i is distances -i ... padded - 1 - i: windows that slide backwards. What lies beyond `length` is never read.
  at::Tensor row_HO = distances_HO.narrow(1, zero - (length - 1), 2 * length - 1);
  if (padded > length) row_HO = at::constant_pad_nd(row_HO, {0, padded - length});
  const at::Tensor bias_HLP = at::empty({row_HO.size(0), length, padded}, row_HO.options());
  bias_HLP.copy_(row_HO.unfold(1, padded, 1).flip(1));
  return bias_HLP.narrow(2, 0, length);
}

}  // namespace dfm::models
