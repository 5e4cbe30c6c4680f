#pragma once
// Many small pictures on one page.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace dfm::formats {

// Tiles the pictures [H, W, 3] (uint8) row by row, `columns` a row, `gap` white pixels between and around them. Smaller
// pictures stand in the middle of their tile. At least one picture, columns >= 1.
at::Tensor contact_sheet(const std::vector<at::Tensor>& frames_HW3, std::int64_t columns, std::int64_t gap);

}  // namespace dfm::formats
