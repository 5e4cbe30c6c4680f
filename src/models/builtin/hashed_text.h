#pragma once
// The weightless text encoder: word i of a caption becomes the row (h(w_i) + h(w_{i-1} w_i)) / sqrt 2, where h gives
// each string 1024 normals of its own (Philox, n = FNV-1a-64 of the string). The same word always looks alike, in
// another context a little different; nothing is known about meaning. Every caption ends in the row of the end mark.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dfm/models/encoders.h"

namespace dfm::models {

class HashedTextEncoder final : public TextEncoder {
 public:
  explicit HashedTextEncoder(at::Device device) : device_(device) {}
  [[nodiscard]] std::string name() const override { return "builtin"; }
  [[nodiscard]] std::int64_t width() const override { return 1024; }
  [[nodiscard]] std::int64_t max_length() const override { return 512; }
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const override;

 private:
  at::Device device_;
};

}  // namespace dfm::models
