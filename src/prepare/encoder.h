#pragma once
// One item of the source -> one sample.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "dfm/data/shard_writer.h"
#include "dfm/data/source.h"
#include "dfm/models/encoders.h"
#include "dfm/prepare/options.h"
#include "dfm/prepare/prepare.h"
#include "prepare/settings.h"
#include "prepare/text_cache.h"

namespace dfm::prepare {

// One item of the source, done: a sample, or why there is none.
struct Result {
  std::optional<data::SampleParts> parts;
  Skipped skipped;
  bool has_caption = false;
};

class Encoder {
 public:
  // Loads the encoders that `settings` name.
  Encoder(const data::Source& source, const PrepareOptions& options, const Settings& settings, at::Device device);

  [[nodiscard]] const models::VideoTokenizer& tokenizer() const { return *tokenizer_; }
  [[nodiscard]] const models::TextEncoder& text_encoder() const { return *text_encoder_; }
  [[nodiscard]] const data::LoadLimits& limits() const { return limits_; }

  // Thread safe. Media that cannot be read are skipped; any other error is thrown.
  Result run(std::uint64_t index);

 private:
  data::SampleParts encode(std::uint64_t index, const data::SourceItem& item);

  const data::Source& source_;
  at::Device device_;
  std::unique_ptr<models::VideoTokenizer> tokenizer_;
  std::unique_ptr<models::TextEncoder> text_encoder_;
  TextCache texts_;
  data::LoadLimits limits_;
};

}  // namespace dfm::prepare
