#pragma once
// What a fuzz target offers to libFuzzer and to replay.cpp.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
// Whole, valid inputs to start from.
std::vector<std::string> fuzz_seeds();

namespace dfm::test {

inline std::span<const std::byte> fuzz_bytes(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

inline std::size_t num_accepted = 0;  // inputs that were read without an error

// Bad input may only end in a DataError.
template <typename Body>
int expect_data_errors_only(Body&& body) {
  try {
    body();
    ++num_accepted;
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) std::abort();
  }
  return 0;
}

// Reads every element, so that a tensor that reaches beyond its memory is noticed.
inline void touch(const at::Tensor& tensor) {
  constexpr std::size_t kMaxBytes = std::size_t{16} << 20;
  if (tensor.nbytes() > kMaxBytes) return;  // expanded ones
  const at::Tensor plain = tensor.contiguous();
  static_cast<void>(crc32c({static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()}));
}

}  // namespace dfm::test
