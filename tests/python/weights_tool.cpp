// formats/weights.h for weights_peers.py:
//   weights_tool list FILE...      the tensors of each, a line of JSON: name -> dtype, shape, sha256
//   weights_tool write FROM TO     all tensors of FROM into a safetensors file
//   weights_tool open FILE NAME    opens, reads one tensor; prints how many bytes of memory either took
#include <ATen/ATen.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/weights.h"
#include "support/sha256.h"

namespace dfm {
namespace {

// Of the process's own memory, mapped files left out: pages of these go when others need room.
std::int64_t own_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8)) * 1024;
  }
  throw InternalError("/proc/self/status: got no RssAnon");
}

std::int64_t mapped_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoll(line.substr(8)) * 1024;
  }
  throw InternalError("/proc/self/status: got no RssFile");
}

void list(const std::string& path) {
  const auto weights = formats::Weights::open(path);
  nlohmann::ordered_json result;
  for (const auto& entry : weights.entries()) {
    const at::Tensor tensor = weights.read(entry.name).contiguous();
    const std::span bytes(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
    result[entry.name] = {
        {"dtype", at::toString(entry.dtype)}, {"shape", entry.shape}, {"sha256", test::sha256(bytes)}};
  }
  std::cout << result.dump() << "\n";
}

void write(const std::string& from, const std::string& to) {
  const auto weights = formats::Weights::open(from);
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& entry : weights.entries()) tensors.emplace_back(entry.name, weights.read(entry.name));
  formats::write_safetensors(to, tensors);
}

void measure(const std::string& path, const std::string& name) {
  const std::int64_t before = own_bytes(), mapped_before = mapped_bytes();
  const auto weights = formats::Weights::open(path);
  const std::int64_t opened = own_bytes(), mapped = mapped_bytes();
  const at::Tensor tensor = weights.read(name);
  const double sum = tensor.sum().item<double>();
  std::cout << nlohmann::json{{"open", opened - before},
                              {"open_mapped", mapped - mapped_before},
                              {"read", own_bytes() - opened},
                              {"bytes", tensor.nbytes()},
                              {"sum", sum}}
                   .dump()
            << "\n";
}

}  // namespace
}  // namespace dfm

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) return 64;
  try {
    if (arguments[0] == "list") {
      for (std::size_t i = 1; i < arguments.size(); ++i) dfm::list(arguments[i]);
    } else if (arguments.size() == 3 && arguments[0] == "write") {
      dfm::write(arguments[1], arguments[2]);
    } else if (arguments.size() == 3 && arguments[0] == "open") {
      dfm::measure(arguments[1], arguments[2]);
    } else {
      return 64;
    }
    return 0;
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
