#pragma once
// T5's encoder over packed captions. Legend: T tokens of a batch, D d_model, H heads, d d_kv, L length of a caption,
// N captions of a group.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/t5/t5_config.h"

namespace dfm::models {

struct T5Layer {
  at::Tensor attention_norm_D;     // float
  std::vector<at::Tensor> qkv;     // one matrix [3 H d, D], or three [H d, D] that are views of a file
  at::Tensor out;                  // [D, H d]
  at::Tensor feed_forward_norm_D;  // float
  std::vector<at::Tensor> wi;      // [d_ff, D]; gated: the activated one, then the other
  at::Tensor wo;                   // [D, d_ff]
};

struct T5Weights {
  T5Config config;
  at::Device device = at::kCPU;       // where it computes
  at::ScalarType dtype = at::kFloat;  // of the matrices; norms and the sum of the layers are float
  bool streamed = false;              // the layers lie in host memory, pinned where the device is a GPU
  at::Tensor embedding_VD;
  at::Tensor bias_HO;  // of distances -511 ... 511, in `dtype`, on the device
  std::vector<T5Layer> layers;
  at::Tensor final_norm_D;  // float, on the device
};

class T5Network {
 public:
  static constexpr std::int64_t kMaxLength = 512;
  explicit T5Network(T5Weights weights);
  ~T5Network();
  T5Network(T5Network&&) noexcept;

  [[nodiscard]] const T5Config& config() const;
  // One float tensor [L, D] a caption on the device. Captions: at least 1 and at most kMaxLength ids below vocab_size
  // each; shorter before longer is fastest in memory. Each attends to itself only. Thread safe.
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::vector<std::int32_t>>& captions) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The shape of a layer, and the network's parts, from a source of tensors: `read` gives parameter `name` (transformers'
// names after `encoder.`; `embed_tokens.weight` for the embedding), in any dtype, on any device.
using ReadT5Tensor = std::function<at::Tensor(const std::string& name)>;
T5Weights load_t5_weights(const T5Config& config, const ReadT5Tensor& read, at::Device device, at::ScalarType dtype,
                          bool offload);

// Every parameter: name as above and shape.
struct T5Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
};
std::vector<T5Parameter> t5_parameters(const T5Config& config);

// Random weights as transformers initialises them, for tests and benchmarks; made on `device`.
ReadT5Tensor random_t5_tensors(const T5Config& config, at::Device device, at::ScalarType dtype);

}  // namespace dfm::models
