#pragma once
// Fixed codes of time, frame rate and position. Legend: T tokens, N segments, D width.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>

namespace dfm::models {

// [N, width]: sines, then cosines, of value * 10000^(-i / (width/2 - shift)). In float, as diffusers' `Timesteps`, but
// in double for double values.
at::Tensor sinusoid(const at::Tensor& value_N, std::int64_t width, std::int64_t shift);

// [count, width]: the code of positions 0 .. count - 1 on one axis, in double.
at::Tensor axis_codes(std::int64_t count, std::int64_t width);

// [frames * height * width, D]: the table of diffusers' get_3d_sincos_pos_embed, rows in (t, h, w) order: a quarter of
// the channels for time, then 3/8 for the column, 3/8 for the row.
at::Tensor position_table(std::int64_t frames, std::int64_t height, std::int64_t width, std::int64_t hidden_size);

// Rows of that table for any size, from two tables of one axis each that grow on demand.
class PositionCodes {
 public:
  PositionCodes(std::int64_t hidden_size, at::ScalarType dtype, at::Device device);
  // The same tensor again (generate's steps) gives the same result again. Positions on a GPU cost a wait for it once.
  at::Tensor lookup(const at::Tensor& position_T3);

 private:
  void grow(at::Tensor& table, std::int64_t count, std::int64_t width) const;
  std::int64_t hidden_size_;
  at::ScalarType dtype_;
  at::Device device_;
  std::mutex mutex_;
  at::Tensor time_, space_;  // [count, D / 4], [count, 3 D / 8]
  at::Tensor last_position_, last_codes_;
};

}  // namespace dfm::models
