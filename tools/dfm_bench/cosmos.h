#pragma once
// `dfm_bench cosmos`: times the Cosmos tokenizer with random weights of the published shapes.
#include <cstdint>
#include <string>

namespace CLI {
class App;
}

namespace dfm::bench {

struct CosmosBench {
  std::string variant = "CV8x8x8", device = "cpu", precision = "auto", what = "both";
  std::int64_t height = 704, width = 1280, frames = 121, batch = 1;
  std::int64_t warmup = 1, steps = 3, decode_window = 0, tile = 0;
};
CLI::App* add_cosmos(CLI::App& app, CosmosBench& options);
int run_cosmos(const CosmosBench& options);

}  // namespace dfm::bench
