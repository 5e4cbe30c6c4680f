#pragma once
// Writes pickles of protocol 2 (and 3 for bytes) that torch.load(weights_only=True) and pickle.loads accept: an opcode
// a call, no memo.
//
//   PickleWriter out;
//   out.start();  out.empty_dict();  out.mark();
//   out.text("step");  out.integer(7);
//   out.set_items();  out.stop();
//   std::string bytes = out.take();
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dfm::formats {

class PickleWriter {
 public:
  void start(int protocol = 2);
  void stop() { op('.'); }
  void none() { op('N'); }
  void boolean(bool value) { op(value ? '\x88' : '\x89'); }
  void integer(std::int64_t value);
  void real(double value);
  void text(std::string_view value);
  void bytes(std::string_view value);  // protocol 3
  void global(std::string_view module, std::string_view name);
  void mark() { op('('); }
  void tuple() { op('t'); }  // of what follows the last mark
  void empty_tuple() { op(')'); }
  void empty_dict() { op('}'); }
  void set_items() { op('u'); }  // key, value pairs since the last mark, into the dict below it
  void reduce() { op('R'); }
  void integer_tuple(std::span<const std::int64_t> values);
  // A storage by persistent id (zip files): ('storage', type, key, 'cpu', numel).
  void storage(at::ScalarType dtype, std::string_view key, std::int64_t numel);
  // A contiguous tensor that fills storage `key`.
  void tensor(at::ScalarType dtype, std::span<const std::int64_t> shape, std::string_view key);
  std::string take() { return std::move(out_); }

 private:
  friend std::string pickle_tensor(const at::Tensor& tensor);
  void op(char code) { out_.push_back(code); }
  template <typename T>
  void little_endian(T value);
  void begin_tensor(at::ScalarType dtype);
  void end_tensor(at::ScalarType dtype, std::span<const std::int64_t> shape);

  std::string out_;
};

// Row-major strides of a shape.
std::vector<std::int64_t> contiguous_strides(std::span<const std::int64_t> shape);

}  // namespace dfm::formats
