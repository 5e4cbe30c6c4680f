#include "formats/mapped_tensor.h"

#include <ATen/ATen.h>

#include <cstring>

#include "formats/torch_reader.h"

namespace dfm::formats {

at::Tensor mapped_tensor(const std::shared_ptr<const MappedFile>& file, const StorageWindow& window) {
  const auto options = at::TensorOptions().dtype(window.dtype);
  std::int64_t last = 0, numel = 1;
  for (std::size_t i = 0; i < window.sizes.size(); ++i) {
    last += (window.sizes[i] - 1) * window.strides[i];
    numel *= window.sizes[i];
  }
  if (numel == 0) return at::empty(window.sizes, options);
  const std::size_t item_bytes = c10::elementSize(window.dtype);
  const auto covered = window.bytes.subspan(static_cast<std::size_t>(window.offset) * item_bytes,
                                            static_cast<std::size_t>(last + 1) * item_bytes);
  if (window.dtype == at::kBool) check_bools(covered, file->path().string());
  const std::size_t alignment = c10::isComplexType(window.dtype) ? item_bytes / 2 : item_bytes;
  if (reinterpret_cast<std::uintptr_t>(covered.data()) % alignment != 0) {
    const at::Tensor flat = at::empty({last + 1}, options);
    std::memcpy(flat.mutable_data_ptr(), covered.data(), covered.size());
    return flat.as_strided(window.sizes, window.strides);
  }
  return at::from_blob(
      const_cast<std::byte*>(covered.data()), window.sizes, window.strides, [file](void*) {}, options);
}

}  // namespace dfm::formats
