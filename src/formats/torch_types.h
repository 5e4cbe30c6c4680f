#pragma once
// Names that torch gives its element types.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dfm::formats {

// `BFloat16Storage` -> kBFloat16; the untyped storage is bytes.
std::optional<at::ScalarType> storage_type(std::string_view class_name);
// Nothing for types that only exist on untyped storages (uint16, float8, ...).
std::optional<std::string_view> storage_class(at::ScalarType dtype);
// `bfloat16` -> kBFloat16 and back, as `torch.<name>` spells it.
std::optional<at::ScalarType> dtype_of_name(std::string_view name);
std::string_view dtype_name(at::ScalarType dtype);  // InternalError when files cannot hold the type
// `f4` of numpy -> kFloat.
std::optional<at::ScalarType> dtype_of_numpy(std::string_view code);

// Text from a file, fit for a message: cut to 80 bytes, control characters escaped.
std::string printable(std::string_view text);

}  // namespace dfm::formats
