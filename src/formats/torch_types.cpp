#include "formats/torch_types.h"

#include <array>

#include "dfm/base/error.h"

namespace dfm::formats {
namespace {

struct TypeNames {
  at::ScalarType dtype;
  std::string_view name, storage, numpy;
};
constexpr std::array kTypes = {
    TypeNames{at::kFloat, "float32", "FloatStorage", "f4"},
    TypeNames{at::kDouble, "float64", "DoubleStorage", "f8"},
    TypeNames{at::kHalf, "float16", "HalfStorage", "f2"},
    TypeNames{at::kBFloat16, "bfloat16", "BFloat16Storage", ""},
    TypeNames{at::kLong, "int64", "LongStorage", "i8"},
    TypeNames{at::kInt, "int32", "IntStorage", "i4"},
    TypeNames{at::kShort, "int16", "ShortStorage", "i2"},
    TypeNames{at::kChar, "int8", "CharStorage", "i1"},
    TypeNames{at::kByte, "uint8", "ByteStorage", "u1"},
    TypeNames{at::kBool, "bool", "BoolStorage", "b1"},
    TypeNames{at::kComplexFloat, "complex64", "ComplexFloatStorage", "c8"},
    TypeNames{at::kComplexDouble, "complex128", "ComplexDoubleStorage", "c16"},
    TypeNames{at::kUInt16, "uint16", "", "u2"},
    TypeNames{at::kUInt32, "uint32", "", "u4"},
    TypeNames{at::kUInt64, "uint64", "", "u8"},
    TypeNames{at::kFloat8_e4m3fn, "float8_e4m3fn", "", ""},
    TypeNames{at::kFloat8_e5m2, "float8_e5m2", "", ""},
};

}  // namespace

std::optional<at::ScalarType> storage_type(std::string_view class_name) {
  if (class_name == "UntypedStorage") return at::kByte;
  for (const TypeNames& type : kTypes) {
    if (!type.storage.empty() && type.storage == class_name) return type.dtype;
  }
  return std::nullopt;
}

std::optional<std::string_view> storage_class(at::ScalarType dtype) {
  for (const TypeNames& type : kTypes) {
    if (type.dtype == dtype && !type.storage.empty()) return type.storage;
  }
  return std::nullopt;
}

std::optional<at::ScalarType> dtype_of_name(std::string_view name) {
  if (name == "float") return at::kFloat;
  for (const TypeNames& type : kTypes) {
    if (type.name == name) return type.dtype;
  }
  return std::nullopt;
}

std::string_view dtype_name(at::ScalarType dtype) {
  for (const TypeNames& type : kTypes) {
    if (type.dtype == dtype) return type.name;
  }
  throw InternalError("torch file: got a tensor of type {}, want one that files can hold", at::toString(dtype));
}

std::optional<at::ScalarType> dtype_of_numpy(std::string_view code) {
  if (code == "?") return at::kBool;
  for (const TypeNames& type : kTypes) {
    if (!type.numpy.empty() && type.numpy == code) return type.dtype;
  }
  return std::nullopt;
}

std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 80;
  std::string result;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      result.push_back(c);
    } else {
      result += fmt::format("\\x{:02x}", byte);
    }
  }
  if (text.size() > kLongest) result += "...";
  return result;
}

}  // namespace dfm::formats
