// Sources for the Python scripts beside this file. A line of JSON on stdin is a request, a line on stdout the answer:
//   {"input": ..., "image_column": ..., "caption_column": ..., "hub_cache": ..., "order": "backwards", "threads": 4}
//   {"description": ..., "items": [{"name", "caption", "is_clip", "num_pixels", "shape", "sha256" or "error"}]}
//   {"error": ..., "code": 3} where it cannot be opened
#include <ATen/ATen.h>

#include <atomic>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "dfm/base/error.h"
#include "dfm/data/source.h"
#include "support/sha256.h"

namespace dfm {
namespace {

using nlohmann::ordered_json;

ordered_json describe(const data::Source& source, std::size_t index) {
  data::LoadLimits limits;
  limits.short_side = 32;  // pictures of this size are not scaled
  ordered_json row{{"name", source.name(index)}, {"num_pixels", source.num_pixels(index, limits)}};
  try {
    const data::SourceItem item = source.item(index);
    row["is_clip"] = item.is_clip;
    row["caption"] = item.caption ? ordered_json(*item.caption) : ordered_json();
    const at::Tensor rgb = source.load(index, limits).rgb_THW3.contiguous();
    row["shape"] = rgb.sizes().vec();
    row["sha256"] = test::sha256({static_cast<const std::byte*>(rgb.const_data_ptr()), rgb.nbytes()});
  } catch (const Error& error) {
    row["error"] = error.what();
  }
  return row;
}

ordered_json answer(const ordered_json& request) {
  data::SourceOptions options;
  options.input = request.at("input");
  options.image_column = request.value("image_column", "");
  options.caption_column = request.value("caption_column", "");
  options.hub_cache = request.value("hub_cache", "");
  const auto source = data::open_source(options);
  std::vector<ordered_json> items(source->size());
  std::atomic<std::size_t> next = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < request.value("threads", 1); ++i) {
    threads.emplace_back([&] {
      for (std::size_t k = next++; k < items.size(); k = next++) {
        const std::size_t index = request.contains("order") ? items.size() - 1 - k : k;
        items[index] = describe(*source, index);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return {{"description", source->description()}, {"items", items}};
}

}  // namespace
}  // namespace dfm

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    nlohmann::ordered_json result;
    try {
      result = dfm::answer(nlohmann::ordered_json::parse(line));
    } catch (const dfm::Error& error) {
      result = {{"error", error.what()}, {"code", static_cast<int>(error.code())}};
    }
    std::cout << result.dump() << std::endl;
  }
  return 0;
}
