#pragma once
// The layers, each of which takes a clip in pieces: what a piece needs of the frames before it stands in a Stream, one
// for each clip that is under way. The layers themselves are constant: any number of threads may use them.
//
// Legend: N clips, T frames of this piece, H rows, W columns, C channels; F = N x T frames. Activations are
// [N, T, H, W, C], contiguous, of the compute type; a layer may overwrite the tensor that it is given.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/cosmos_tokenizer/config.h"

namespace dfm::models::cosmos {

// A clip under way. Layers keep their past in slots, numbered when the network is built.
struct Stream {
  std::vector<at::Tensor> slots;
  bool first = true;             // no frame has been taken yet
  bool last = false;             // none will follow: nothing need be kept
  std::int64_t window = 0;       // earlier latent frames that temporal attention sees, 0: all
  std::int64_t strip_bytes = 0;  // convolutions work in strips of rows whose frames take about this much
  [[nodiscard]] bool is_picture(std::int64_t frames) const { return first && last && frames == 1; }
};

using TensorShapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

// Hands out the tensors of a file under diffusers' names and keeps account of what is wrong.
class WeightReader {
 public:
  // tensors: of one half.
  WeightReader(NamedTensors tensors, std::int64_t num_levels, at::Device device, at::ScalarType dtype);
  // Float, on the CPU, with these sizes; zeros when it is missing or misshapen.
  at::Tensor read(const std::string& name, const std::vector<std::int64_t>& shape);
  at::Tensor to_compute(const at::Tensor& tensor) const { return tensor.to(device_, dtype_); }
  at::Tensor to_float(const at::Tensor& tensor) const { return tensor.to(device_, at::kFloat); }
  // What was asked for, under diffusers' names.
  [[nodiscard]] const TensorShapes& requests() const { return requests_; }
  std::int64_t new_slot() { return num_slots_++; }
  [[nodiscard]] std::int64_t num_slots() const { return num_slots_; }
  // Checks that all tensors were asked for, but for those that files are known to carry unused. DataError with the
  // first fault and the number of others.
  void finish(const std::string& where) const;

 private:
  NamedTensors tensors_;
  bool native_;
  std::int64_t num_levels_;
  at::Device device_;
  at::ScalarType dtype_;
  std::int64_t num_slots_ = 0;
  TensorShapes requests_;
  std::vector<std::string> used_, faults_;
};

// Kernel 1x1x1.
class Pointwise {
 public:
  Pointwise(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out);
  // extra: float [C], added to the bias (before rounding).
  void add_to_bias(const WeightReader& reader, const at::Tensor& extra_C);
  [[nodiscard]] at::Tensor operator()(const at::Tensor& x) const;

 private:
  at::Tensor weight_OC_, float_bias_, bias_;
};

// Kernel (3,1,1) over time, causal: before the first frame stand copies of it.
class TemporalConv {
 public:
  TemporalConv(WeightReader& reader, const std::string& name, std::int64_t channels);
  // frames: [N, 2 + n stride, H, W, C], the past in front; no bias.
  [[nodiscard]] at::Tensor run(const at::Tensor& frames, std::int64_t stride) const;
  [[nodiscard]] const at::Tensor& bias() const { return bias_; }  // float, on the device
  [[nodiscard]] const at::Tensor& host_weight() const { return host_weight_; }
  [[nodiscard]] const at::Tensor& host_bias() const { return host_bias_; }
  void forget_host() { host_weight_ = host_bias_ = at::Tensor(); }

 private:
  at::Tensor weight_, bias_, host_weight_, host_bias_;
};

// A (1,3,3) and a (3,1,1) convolution, together: the bias of the first passes through the second, and for a picture
// both are one 3x3 convolution.
class ConvPair {
 public:
  ConvPair(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out);
  using Rows = std::function<at::Tensor(std::int64_t begin, std::int64_t end)>;               // [F, rows, W, in]
  using Emit = std::function<void(std::int64_t begin, std::int64_t end, const at::Tensor&)>;  // [N, T, rows, W, out]
  struct Shape {
    std::int64_t n, t, h, w;
  };
  // Strip by strip; results lack bias().
  void run(Stream& stream, const Shape& shape, const Rows& rows, const Emit& emit) const;
  // The strips put together, still without bias.
  [[nodiscard]] at::Tensor assemble(Stream& stream, const Shape& shape, const Rows& rows) const;
  // Of a whole tensor, with bias.
  [[nodiscard]] at::Tensor operator()(Stream& stream, const at::Tensor& x) const;
  [[nodiscard]] const at::Tensor& bias() const { return bias_; }  // float

 private:
  std::int64_t in_, out_, slot_;
  at::Tensor spatial_, picture_, bias_;
  TemporalConv temporal_;
};

class FrameNorm {
 public:
  FrameNorm(WeightReader& reader, const std::string& name, std::int64_t channels);
  at::Tensor weight, shift;  // float
};

class ResBlock {
 public:
  ResBlock(WeightReader& reader, const std::string& name, std::int64_t in, std::int64_t out);
  [[nodiscard]] at::Tensor operator()(Stream& stream, at::Tensor x) const;

 private:
  FrameNorm norm1_, norm2_;
  ConvPair conv1_, conv2_;
  std::optional<Pointwise> shortcut_;
};

// One head as wide as the layer: over the pixels of each frame, or over the frames of each pixel up to its own.
class Attention {
 public:
  Attention(WeightReader& reader, const std::string& name, std::int64_t channels, bool temporal);
  [[nodiscard]] at::Tensor operator()(Stream& stream, at::Tensor x) const;

 private:
  void spatial(const at::Tensor& x_FHWC, const at::Tensor& normed_FHWC) const;
  void temporal(Stream& stream, const at::Tensor& x, const at::Tensor& normed) const;
  std::int64_t channels_, slot_;
  bool temporal_;
  FrameNorm norm_;
  at::Tensor qkv_weight_, qkv_bias_;  // queries scaled
  at::Tensor out_weight_, out_bias_;
};

class Downsample {
 public:
  Downsample(WeightReader& reader, const std::string& name, std::int64_t channels, const Level& level);
  [[nodiscard]] at::Tensor operator()(Stream& stream, at::Tensor x) const;

 private:
  std::int64_t slot_;
  at::Tensor spatial_weight_, spatial_bias_;
  std::optional<TemporalConv> temporal_;
  Pointwise out_;
};

class Upsample {
 public:
  Upsample(WeightReader& reader, const std::string& name, std::int64_t channels, const Level& level);
  [[nodiscard]] at::Tensor operator()(Stream& stream, at::Tensor x) const;

 private:
  std::int64_t slot_;
  at::Tensor spatial_weight_, spatial_bias_;
  std::optional<TemporalConv> temporal_;
  Pointwise out_;
};

}  // namespace dfm::models::cosmos
