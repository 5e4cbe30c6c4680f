#include "comm/ordered_reduce.h"

#include <ATen/ATen.h>

#include <array>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

// Elements whose running sums stay in the first-level cache while the inputs pass by one after the other.
constexpr std::int64_t kBlock = 1024;

struct Sum {
  template <typename T>
  static T apply(T a, T b) {
    return a + b;
  }
};

struct Max {
  template <typename T>
  static T apply(T a, T b) {
    return a > b || a != a ? a : b;  // a != a: NaN
  }
};

template <typename Op, typename T, typename Running>
void reduce_elements(const std::vector<const std::byte*>& inputs, std::byte* out_bytes, std::int64_t count) {
  std::array<Running, kBlock> running;
  T* out = reinterpret_cast<T*>(out_bytes);
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t length = std::min(kBlock, count - begin);
    const T* first = reinterpret_cast<const T*>(inputs.front()) + begin;
    for (std::int64_t i = 0; i < length; ++i) running[static_cast<std::size_t>(i)] = static_cast<Running>(first[i]);
    for (std::size_t input = 1; input < inputs.size(); ++input) {
      const T* x = reinterpret_cast<const T*>(inputs[input]) + begin;
      for (std::int64_t i = 0; i < length; ++i) {
        Running& value = running[static_cast<std::size_t>(i)];
        value = Op::apply(value, static_cast<Running>(x[i]));
      }
    }
    for (std::int64_t i = 0; i < length; ++i) out[begin + i] = static_cast<T>(running[static_cast<std::size_t>(i)]);
  }
}

template <typename Op>
void reduce_dtype(at::ScalarType dtype, const std::vector<const std::byte*>& inputs, std::byte* out,
                  std::int64_t count) {
  if (dtype == at::kFloat) reduce_elements<Op, float, float>(inputs, out, count);
  if (dtype == at::kDouble) reduce_elements<Op, double, double>(inputs, out, count);
  if (dtype == at::kBFloat16) reduce_elements<Op, at::BFloat16, float>(inputs, out, count);
  if (dtype == at::kLong) reduce_elements<Op, std::int64_t, std::int64_t>(inputs, out, count);
}

}  // namespace

void require_reducible(at::ScalarType dtype) {
  if (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kLong) return;
  throw InternalError("reduction between ranks: got {}, want float32, float64, bfloat16 or int64", at::toString(dtype));
}

void reduce_in_order(Reduce op, at::ScalarType dtype, const std::vector<const std::byte*>& inputs, std::byte* out,
                     std::int64_t count) {
  require_reducible(dtype);
  if (op == Reduce::kSum) {
    reduce_dtype<Sum>(dtype, inputs, out, count);
  } else {
    reduce_dtype<Max>(dtype, inputs, out, count);
  }
}

}  // namespace dfm::comm
