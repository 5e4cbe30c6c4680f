#pragma once
// The encoders of a run, and the samples that they make.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "dfm/data/shard_writer.h"
#include "dfm/data/source.h"
#include "dfm/models/encoders.h"
#include "dfm/prepare/options.h"
#include "dfm/prepare/prepare.h"
#include "prepare/memory_budget.h"
#include "prepare/settings.h"

namespace dfm::prepare {

struct Encoders {
  std::shared_ptr<const models::VideoTokenizer> tokenizer;
  std::shared_ptr<const models::TextEncoder> text;  // null where another rank encodes the captions
  // With --text-encoder-offload the two take turns on the GPU; else null.
  std::shared_ptr<std::mutex> turn;
};

// Loads those that `settings` name, or takes those of the context. What cannot be had is an error with advice.
Encoders load_encoders(const PrepareOptions& options, const Settings& settings, const RunContext& context,
                       bool needs_text);

// Sizes for the tokenizer. ConfigError: --short-side is too small for it.
data::LoadLimits load_limits(const PrepareOptions& options, const models::VideoTokenizer& tokenizer);

// An item of the source, read and resized.
struct LoadedItem {
  std::uint64_t index = 0;  // in the source
  std::string name;
  std::string problem;  // not empty: it cannot be read, and why
  bool has_caption = false;
  data::SampleDescription description;
  at::Tensor rgb_THW3;  // uint8; undefined with a problem
};

// Reads items within a bound of memory. Thread safe.
class ItemLoader {
 public:
  // `is_pinned`: pixels lie in memory that a GPU reads without a copy.
  ItemLoader(const data::Source& source, const data::LoadLimits& limits, bool is_pinned, std::uint64_t budget_bytes)
      : source_(source), limits_(limits), is_pinned_(is_pinned), budget_(budget_bytes) {}
  // `number`: in the order in which items are needed. Any error but a DataError is thrown.
  LoadedItem load(std::uint64_t number, std::uint64_t index);
  // The pixels of `number` are not needed any more, or counted elsewhere.
  void release(std::uint64_t number) { budget_.release(number); }
  void stop() { budget_.stop(); }

 private:
  const data::Source& source_;
  data::LoadLimits limits_;
  bool is_pinned_;
  MemoryBudget budget_;
};

// One item of the source, done: a sample, or why there is none.
struct Result {
  std::optional<data::SampleParts> parts;
  Skipped skipped;
  bool has_caption = false;
  std::int64_t num_frames = 0;  // that were encoded
};

// Values that no reader would take are a reason to skip.
Result make_result(const LoadedItem& item, const at::Tensor& latent_CTHW, const at::Tensor& text_LE);
Result skip(const LoadedItem& item, const std::string& problem);

}  // namespace dfm::prepare
