// T5 for t5_matches_transformers.py:
//   t5_tool ids TOKENIZER TEXTS.json MAX_LENGTH          a JSON list of lists of ids on stdout
//   t5_tool encode FOLDER WEIGHTS PRECISION CAPTIONS.json OUTPUT.safetensors     tensors 0, 1, ...: rows of a caption
// FOLDER holds config.json and spiece.model.
#include <ATen/ATen.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/safetensors.h"
#include "dfm/text/t5_tokenizer.h"
#include "models/t5/t5_encoder.h"

namespace {

namespace fs = std::filesystem;

std::vector<std::string> read_texts(const fs::path& path) {
  return nlohmann::json::parse(dfm::read_text_file(path)).get<std::vector<std::string>>();
}

int print_ids(const fs::path& tokenizer_file, const fs::path& texts, std::size_t max_length) {
  const dfm::text::T5Tokenizer tokenizer(tokenizer_file);
  nlohmann::json ids = nlohmann::json::array();
  for (const std::string& text : read_texts(texts)) ids.push_back(tokenizer.encode(text, max_length));
  std::cout << ids.dump() << "\n";
  return 0;
}

int encode(const fs::path& folder, const fs::path& weights, const std::string& precision, const fs::path& captions,
           const fs::path& output) {
  dfm::models::EncoderOptions options;
  options.precision = precision == "bf16" ? dfm::models::Precision::kBf16 : dfm::models::Precision::kFp32;
  const auto encoder = dfm::models::open_t5({.config = folder / "config.json",
                                             .tokenizer = folder / "spiece.model",
                                             .weights = dfm::formats::Weights::open(weights),
                                             .name = folder.string()},
                                            options);
  std::vector<std::pair<std::string, at::Tensor>> rows;
  for (const at::Tensor& rows_LD : encoder->encode(read_texts(captions))) {
    rows.emplace_back(std::to_string(rows.size()), rows_LD.clone());
  }
  dfm::formats::write_safetensors(output, rows);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 4 && arguments[0] == "ids") {
      return print_ids(arguments[1], arguments[2], std::stoul(arguments[3]));
    }
    if (arguments.size() == 6 && arguments[0] == "encode") {
      return encode(arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    }
    return 64;
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.code());
  }
}
