#pragma once
// Captions -> rows, each different caption once.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <future>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/models/encoders.h"

namespace dfm::prepare {

// Thrown out of waiting when the run is to end.
struct Stopped : std::exception {
  [[nodiscard]] const char* what() const noexcept override { return "the run is to end"; }
};

class Texts {
 public:
  virtual ~Texts() = default;
  // Rows of a caption on the CPU, any floating type; `number`: its item's in this rank's share. Thread safe; blocks
  // until they are there. An error of the encoder is thrown to whoever asks.
  virtual at::Tensor rows(std::uint64_t number, const std::string& caption) = 0;
  // Returns when everything that other ranks wait for is there. Throws what rows() throws.
  virtual void finish() {}
  // Whoever waits gets Stopped.
  virtual void stop() {}
  struct Counts {
    std::int64_t captions = 0, rows = 0;
  };
  // What was encoded here.
  [[nodiscard]] virtual Counts encoded() const = 0;
};

// Runs `body`; a GPU that has no room for the text encoder is an error that says so.
template <typename Body>
auto with_room(const std::string& text_encoder, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const c10::OutOfMemoryError&) {
    throw ResourceError(
        "text encoder {}: got no more memory of the GPU, want enough for its weights and captions; hint: "
        "--text-encoder-offload, or a smaller --text-encoder",
        text_encoder);
  }
}

// Encodes a caption when it is asked for, on the thread that asks; others that want the same wait for it.
class TextCache : public Texts {
 public:
  explicit TextCache(const models::TextEncoder& encoder, std::size_t most_texts = 1024 /* about 100 MB */)
      : encoder_(encoder), most_texts_(most_texts) {}

  at::Tensor rows(std::uint64_t number, const std::string& caption) override;
  [[nodiscard]] Counts encoded() const override;

 private:
  const models::TextEncoder& encoder_;
  const std::size_t most_texts_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_future<at::Tensor>> rows_;
  Counts counts_;
};

}  // namespace dfm::prepare
