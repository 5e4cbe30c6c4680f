#include "models/dit/embeddings.h"

#include <ATen/ATen.h>

#include <bit>
#include <cmath>

namespace dfm::models {

at::Tensor sinusoid(const at::Tensor& value_N, std::int64_t width, std::int64_t shift) {
  const at::ScalarType dtype = value_N.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t half = width / 2;
  const at::Tensor exponent =
      at::arange(half, value_N.options().dtype(dtype)) * -std::log(10000.0) / static_cast<double>(half - shift);
  const at::Tensor angle = value_N.to(dtype).unsqueeze(1) * exponent.exp();
  return at::cat({angle.sin(), angle.cos()}, 1);
}

at::Tensor axis_codes(std::int64_t count, std::int64_t width) {
  const at::Tensor i = at::arange(width / 2, at::kDouble);
  const at::Tensor frequency = at::pow(at::scalar_tensor(10000.0, at::kDouble), -i / (static_cast<double>(width) / 2));
  const at::Tensor angle = at::arange(count, at::kDouble).unsqueeze(1) * frequency;
  return at::cat({angle.sin(), angle.cos()}, 1);
}

at::Tensor position_table(std::int64_t frames, std::int64_t height, std::int64_t width, std::int64_t hidden_size) {
  const std::int64_t time_width = hidden_size / 4, space_width = hidden_size * 3 / 8;
  const at::Tensor time = axis_codes(frames, time_width).view({frames, 1, 1, -1});
  const at::Tensor column = axis_codes(width, space_width).view({1, 1, width, -1});
  const at::Tensor row = axis_codes(height, space_width).view({1, height, 1, -1});
  return at::cat({time.expand({frames, height, width, time_width}), column.expand({frames, height, width, space_width}),
                  row.expand({frames, height, width, space_width})},
                 -1)
      .reshape({-1, hidden_size});
}

PositionCodes::PositionCodes(std::int64_t hidden_size, at::ScalarType dtype, at::Device device)
    : hidden_size_(hidden_size), dtype_(dtype), device_(device) {}

void PositionCodes::grow(at::Tensor& table, std::int64_t count, std::int64_t width) const {
  if (table.defined() && table.size(0) >= count) return;
  const auto rounded =
      static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(count, 16))));
  table = axis_codes(rounded, width).to(dtype_).to(device_);
}

at::Tensor PositionCodes::lookup(const at::Tensor& position_T3) {
  const std::lock_guard lock(mutex_);
  if (last_position_.defined() && last_position_.is_same(position_T3)) return last_codes_;
  if (position_T3.size(0) > 0) {
    const at::Tensor largest = position_T3.amax(0).to(at::kCPU);
    const auto* const most = largest.const_data_ptr<std::int64_t>();
    grow(time_, most[0] + 1, hidden_size_ / 4);
    grow(space_, std::max(most[1], most[2]) + 1, hidden_size_ * 3 / 8);
  } else {
    grow(time_, 1, hidden_size_ / 4);
    grow(space_, 1, hidden_size_ * 3 / 8);
  }
  const at::Tensor position = position_T3.to(device_);
  last_codes_ = at::cat({time_.index_select(0, position.select(1, 0)), space_.index_select(0, position.select(1, 2)),
                         space_.index_select(0, position.select(1, 1))},
                        1);
  last_position_ = position_T3;
  return last_codes_;
}

}  // namespace dfm::models
