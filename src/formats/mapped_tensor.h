#pragma once
// Tensors that look into a mapped file.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dfm/base/file.h"

namespace dfm::formats {

// Elements of `dtype` in the bytes of a storage, which the caller has found large enough.
struct StorageWindow {
  std::span<const std::byte> bytes;
  at::ScalarType dtype = at::kByte;
  std::int64_t offset = 0;  // in elements
  std::vector<std::int64_t> sizes, strides;
};

// A view that keeps the file mapped. Where the bytes are not aligned for the type: a copy of what the window covers.
// DataError: bools that are neither 0 nor 1.
at::Tensor mapped_tensor(const std::shared_ptr<const MappedFile>& file, const StorageWindow& window);

}  // namespace dfm::formats
