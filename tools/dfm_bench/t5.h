#pragma once
// `dfm_bench t5`: times T5's encoder with random weights of the published shapes.
#include <cstdint>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace dfm::bench {

struct T5Bench {
  std::string model = "t5-11b", device = "cpu", precision = "auto";
  std::vector<std::int64_t> lengths = {9, 14, 7, 22, 11, 31, 17, 48};  // in turn; peer_t5.py has the same list
  std::int64_t layers = 0, captions = 1024, warmup = 1, steps = 3;
  int threads = 0;
  bool offload = false;
};
CLI::App* add_t5(CLI::App& app, T5Bench& options);
int run_t5(const T5Bench& options);

}  // namespace dfm::bench
