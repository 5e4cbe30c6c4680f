// safetensors, by way of a file: they are read by memory map.
#include <ATen/ATen.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "dfm/base/file.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/weights.h"
#include "fuzz/fuzz_target.h"

namespace {

// One file a process, removed at the end.
struct TemporaryFile {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("dfm_fuzz_safetensors_" + std::to_string(::getpid()));
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};
const std::filesystem::path& temporary() {
  static const TemporaryFile file;
  return file.path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::ofstream(temporary(), std::ios::binary).write(reinterpret_cast<const char*>(data), static_cast<long>(size));
  return dfm::test::expect_data_errors_only([&] {
    const auto weights = dfm::formats::Weights::open(temporary());
    for (const auto& entry : weights.entries()) dfm::test::touch(weights.read(entry.name));
  });
}

std::vector<std::string> fuzz_seeds() {
  const at::Tensor tensor = at::arange(6, at::kFloat).reshape({2, 3});
  std::vector<std::string> seeds;
  const std::vector<std::vector<std::pair<std::string, at::Tensor>>> files = {
      {{"a.weight", tensor}},
      {{"a", tensor}, {"b", tensor.to(at::kBFloat16)}, {"c", at::arange(3)}, {"d", at::ones({3}, at::kBool)}},
      {{"none", at::empty({0, 3})}, {"scalar", at::ones({}, at::kDouble)}}};
  for (const auto& tensors : files) {
    dfm::formats::write_safetensors(temporary(), tensors);
    seeds.push_back(dfm::read_text_file(temporary()));
  }
  return seeds;
}
