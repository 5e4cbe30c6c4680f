#pragma once
// The three parts of a sample, from bytes to values and back.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dfm::data {

struct JsonPart {
  double fps = 0;  // 0: not there
  std::string caption;
};
// Text that is no JSON object is a DataError.
JsonPart parse_json_part(std::string_view json, const std::string& name);

// [C, T, H, W] of a stored [1, C, T, H, W] or [C, T, H, W]; nothing for any other shape.
std::optional<at::Tensor> squeeze_latent(const at::Tensor& stored);
// [L, E] of a stored [1, L, E] or [L, E]; nothing for any other shape.
std::optional<at::Tensor> squeeze_text(const at::Tensor& stored);

// Rows up to the last that is not all zero.
std::int64_t count_text_rows(const at::Tensor& text_LE);

// What is wrong with the numbers, or "": not finite, or with limit > 0 above it.
std::string value_problem(const at::Tensor& values, double limit);

inline constexpr double kLatentLimit = 1000;  // above it DFM's reader skips a sample, too

std::string shape_text(const at::Tensor& tensor);  // "[1, 16, 1, 8, 8]"

}  // namespace dfm::data
