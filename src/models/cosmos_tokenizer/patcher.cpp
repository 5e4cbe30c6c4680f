// Legend: N batch, C channels, T frames, H rows, W columns.
#include "models/cosmos_tokenizer/patcher.h"

#include <ATen/ATen.h>

namespace dfm::models::cosmos {
namespace {

// One level over the last three axes of x [..., bands, 2t, 2y, 2x]: [..., 8 * bands, t, y, x], new bands first in the
// order LLL, LLH, ... HHH (letters: time, height, width). Low is the mean of two, high half their difference.
at::Tensor haar_level(at::Tensor x) {
  for (const int axis : {0, 1, 2}) {  // each puts a band axis before the others of this level
    const at::Tensor pairs = x.unflatten(-3 + axis, {x.size(-3 + axis) / 2, 2});
    const at::Tensor even = pairs.select(-3 + axis, 0), odd = pairs.select(-3 + axis, 1);
    x = at::stack({(even + odd) / 2, (even - odd) / 2}, 1 + axis);
  }
  return x.flatten(1, 4);
}

// Coefficients of the unit blocks, as columns.
at::Tensor haar_matrix(std::int64_t patch) {
  const std::int64_t size = patch * patch * patch;
  at::Tensor x = at::eye(size, at::kDouble).view({size, 1, patch, patch, patch});
  for (std::int64_t side = patch; side > 1; side /= 2) x = haar_level(x);
  return x.reshape({size, size}).t().contiguous();
}

}  // namespace

Patcher::Patcher(std::int64_t patch_size, bool haar, at::Device device) : patch_(patch_size), haar_(haar) {
  const std::int64_t size = patch_ * patch_ * patch_;
  const at::Tensor matrix = haar ? haar_matrix(patch_) : at::eye(size, at::kDouble);
  // Rows are orthogonal, each of squared length 1 / p^3.
  forward_ = matrix.to(device, at::kFloat);
  inverse_ = (haar ? matrix.t() * static_cast<double>(size) : matrix).to(device, at::kFloat).contiguous();
}

at::Tensor Patcher::blocks(const at::Tensor& pixels_NCTHW) const {
  const auto n = pixels_NCTHW.size(0), t = pixels_NCTHW.size(2) / patch_, h = pixels_NCTHW.size(3) / patch_,
             w = pixels_NCTHW.size(4) / patch_;
  const at::Tensor blocks = pixels_NCTHW.reshape({n, 3, t, patch_, h, patch_, w, patch_})
                                .permute({0, 2, 4, 6, 1, 3, 5, 7})
                                .reshape({n * t * h * w * 3, patch_ * patch_ * patch_});
  const at::Tensor coefficients = (haar_ ? blocks.matmul(forward_.t()) : blocks).view({n, t, h, w, 3, -1});
  // Wavelets: colours innermost; rearranged: outermost.
  return (haar_ ? coefficients.transpose(-1, -2) : coefficients).flatten(-2);
}

at::Tensor Patcher::forward(const at::Tensor& pixels_NCTHW, bool first) const {
  const bool bytes = pixels_NCTHW.scalar_type() == at::kByte;
  at::Tensor pixels = pixels_NCTHW.to(forward_.device()).to(at::kFloat);
  if (bytes) pixels = pixels / 127.5 - 1;
  if (!first) return blocks(pixels);
  std::vector<at::Tensor> parts{blocks(pixels.narrow(2, 0, 1).expand({-1, -1, patch_, -1, -1}))};
  if (pixels.size(2) > 1) parts.push_back(blocks(pixels.narrow(2, 1, pixels.size(2) - 1)));
  return at::cat(parts, 1);
}

at::Tensor Patcher::inverse(const at::Tensor& patches_NTHWC, bool first) const {
  const auto n = patches_NTHWC.size(0), t = patches_NTHWC.size(1), h = patches_NTHWC.size(2), w = patches_NTHWC.size(3),
             size = patch_ * patch_ * patch_;
  const at::Tensor patches = patches_NTHWC.to(at::kFloat);
  const at::Tensor coefficients =
      haar_ ? patches.unflatten(-1, {size, 3}).transpose(-1, -2) : patches.unflatten(-1, {3, size});
  at::Tensor blocks = coefficients.reshape({n * t * h * w * 3, size});
  if (haar_) blocks = blocks.matmul(inverse_.t());
  const at::Tensor pixels = blocks.view({n, t, h, w, 3, patch_, patch_, patch_})
                                .permute({0, 4, 1, 5, 2, 6, 3, 7})
                                .reshape({n, 3, t * patch_, h * patch_, w * patch_});
  return first ? pixels.narrow(2, patch_ - 1, t * patch_ - patch_ + 1) : pixels;
}

}  // namespace dfm::models::cosmos
