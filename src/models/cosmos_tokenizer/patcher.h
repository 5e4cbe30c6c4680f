#pragma once
// Pixels to blocks of patch^3 coefficients and back: `log2(patch)` levels of a Haar wavelet packet, or a rearrangement.
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dfm::models::cosmos {

class Patcher {
 public:
  Patcher(std::int64_t patch_size, bool haar, at::Device device);
  // [N, 3, T, H, W] (float, or uint8: x / 127.5 - 1) to float [N, t, H/p, W/p, 3 p^3]. The first frame of a clip stands
  // for p: T = 1 + p n where `first`, else p n.
  [[nodiscard]] at::Tensor forward(const at::Tensor& pixels_NCTHW, bool first) const;
  [[nodiscard]] at::Tensor inverse(const at::Tensor& patches_NTHWC, bool first) const;

 private:
  [[nodiscard]] at::Tensor blocks(const at::Tensor& pixels_NCTHW) const;
  std::int64_t patch_;
  bool haar_;
  // [p^3, p^3]: rows are coefficients, columns the pixels of a block in the order (t, y, x), and its inverse.
  at::Tensor forward_, inverse_;
};

}  // namespace dfm::models::cosmos
