#pragma once
// The results of a share in its order, made on other threads.
//
// OneByOne: each worker thread takes an item from reading to serialising. For encoders that gain nothing from batches,
// on a CPU.
// Batched: worker threads read and resize, one thread encodes groups of equal shape, others copy to the CPU, join with
// the captions' rows and serialise:
//
//   loaders --in order--> encoder thread (Grouper) --any order--> LatentShelf --in order--> finishers --in order-->
//   next()
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "dfm/data/source.h"
#include "prepare/encoders.h"
#include "prepare/grouper.h"
#include "prepare/texts.h"

namespace dfm::prepare {

class ResultStream {
 public:
  virtual ~ResultStream() = default;
  // Nothing after the last. Rethrows what ended a thread.
  virtual std::optional<Result> next() = 0;
};

struct StreamOptions {
  at::Device device = at::kCPU;
  std::int64_t num_workers = 2;
  GroupLimits groups;
  std::uint64_t most_loaded_bytes = std::uint64_t{1} << 30;    // pixels that wait to be encoded
  std::uint64_t most_latent_bytes = std::uint64_t{256} << 20;  // encoded, waiting for their captions or their turn
};

bool gains_from_batches(const models::VideoTokenizer& tokenizer, at::Device device);

// What is referred to must outlive the stream, whose destructor stops `texts`.
std::unique_ptr<ResultStream> one_by_one(const data::Source& source, const data::LoadLimits& limits,
                                         const std::vector<std::uint64_t>& items, const Encoders& encoders,
                                         Texts& texts, const StreamOptions& options);
std::unique_ptr<ResultStream> batched(const data::Source& source, const data::LoadLimits& limits,
                                      const std::vector<std::uint64_t>& items, const Encoders& encoders, Texts& texts,
                                      const StreamOptions& options);

}  // namespace dfm::prepare
