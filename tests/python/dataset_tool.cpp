// Data sets as dfm train opens them, for the Python scripts beside this file:
//   dataset_tool open PATH SPLIT      a line of JSON: the samples with sha256 of latent and text, and the blend's
//   shares
#include <ATen/ATen.h>

#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/data/blend.h"
#include "dfm/data/dataset.h"
#include "support/sha256.h"

namespace dfm {
namespace {

std::string hash_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  return test::sha256({static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes()});
}

nlohmann::ordered_json describe(const data::Dataset& dataset) {
  nlohmann::ordered_json samples = nlohmann::ordered_json::object();
  for (std::size_t i = 0; i < dataset.entries().size(); ++i) {
    const data::Sample sample = dataset.read(i);
    if (!sample.problem.empty()) throw DataError("{}", sample.problem);
    samples[dataset.entries()[i].key] = {{"shape", sample.latent_CTHW.sizes().vec()},
                                         {"latent", hash_of(sample.latent_CTHW)},
                                         {"text_length", sample.text_LE.size(0)},
                                         {"text", hash_of(sample.text_LE)},
                                         {"caption", sample.caption}};
  }
  // What a period draws from each folder: keys of a blend are SET/KEY.
  std::map<std::string, int> draws;
  for (std::int64_t i = 0; i < data::kBlendPeriod; ++i) {
    const std::string& key = dataset.entries()[dataset.index_at(1234, static_cast<std::uint64_t>(i))].key;
    ++draws[key.find('/') == std::string::npos ? "" : key.substr(0, key.rfind('/'))];
  }
  return {{"samples", samples}, {"draws", draws}};
}

}  // namespace
}  // namespace dfm

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() != 3 || arguments[0] != "open") return 64;
  try {
    std::cout << dfm::describe(*dfm::data::Dataset::open(arguments[1], arguments[2])).dump() << "\n";
    return 0;
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
