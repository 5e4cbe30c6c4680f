#pragma once
// The bytes of a tensor, for copies to and from shared memory.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

namespace dfm::comm {

// Pinned memory through which the bytes of CUDA tensors pass; made at the first use.
class Staging {
 public:
  explicit Staging(std::int64_t num_bytes) : num_bytes_(num_bytes) {}
  [[nodiscard]] std::int64_t num_bytes() const { return num_bytes_; }
  at::Tensor get();

 private:
  std::int64_t num_bytes_;
  at::Tensor pinned_;
};

// On a CUDA tensor both calls wait for the current stream: what was enqueued before is seen, and the copy has ended.
class Window {
 public:
  // `tensor` is contiguous, on the CPU or a CUDA device.
  Window(const at::Tensor& tensor, Staging& staging);
  [[nodiscard]] std::int64_t num_bytes() const { return num_bytes_; }
  void read(std::byte* to, std::int64_t offset, std::int64_t count) const;
  void write(const std::byte* from, std::int64_t offset, std::int64_t count) const;

 private:
  std::int64_t num_bytes_ = 0;
  std::byte* data_ = nullptr;  // of a CPU tensor
  at::Tensor flat_;            // of a CUDA tensor, as bytes
  Staging* staging_;
};

}  // namespace dfm::comm
