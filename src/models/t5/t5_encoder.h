#pragma once
// T5's encoder (Raffel et al., arXiv 1910.10683; v1.0 with ReLU, v1.1 and Flan with a gated GELU) as a TextEncoder,
// from files in transformers' layout. docs/encoders.md.
#include <filesystem>
#include <memory>
#include <string>

#include "dfm/formats/weights.h"
#include "dfm/models/encoders.h"

namespace dfm::models {

struct T5Files {
  std::filesystem::path config;     // config.json
  std::filesystem::path tokenizer;  // spiece.model or tokenizer.json
  formats::Weights weights;         // of T5ForConditionalGeneration, T5EncoderModel or its T5Stack
  std::string name;                 // what --text-encoder took
};

// Reads the encoder's tensors, and only those, one by one. DataError: a file that is damaged or does not fit the
// config; ConfigError: a model of another kind.
std::unique_ptr<TextEncoder> open_t5(const T5Files& files, const EncoderOptions& options);

}  // namespace dfm::models
