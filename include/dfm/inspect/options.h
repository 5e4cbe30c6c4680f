#pragma once
// Options of `dfm inspect PATH`.
#include <cstdint>
#include <filesystem>
#include <string>

#include "dfm/config/schema.h"

namespace dfm::inspect {

struct InspectOptions {
  std::filesystem::path path;  // the positional argument
  std::string sample;
  bool json = false;
  std::filesystem::path decode;
  std::string tokenizer;
  std::int64_t num_samples = 16;
  std::int64_t task_encoder_seq_length = 15360;
  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<InspectOptions>(
        field("path", &InspectOptions::path, "What to look into; without the flag: dfm inspect PATH"),
        field("sample", &InspectOptions::sample, "Key of one sample of the data set"),
        field("json", &InspectOptions::json, "Print one JSON object"),
        field("decode", &InspectOptions::decode, "Decode samples: NAME.png for a contact sheet, NAME.mp4 for one clip"),
        field("tokenizer", &InspectOptions::tokenizer,
              "Folder, file or hub id of the tokenizer that decodes; default: the data set's"),
        field("num_samples", &InspectOptions::num_samples, "Samples of a contact sheet, spread over the data set",
              positive),
        field("task_encoder_seq_length", &InspectOptions::task_encoder_seq_length,
              "Tokens of a packed row, for the estimate of packing efficiency", positive));
  }
  void check(config::Problems& problems) const;
};

}  // namespace dfm::inspect
