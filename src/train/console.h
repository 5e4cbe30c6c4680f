#pragma once
// What `dfm train` says to people on stdout, beside the lines of metrics.h.
#include <ATen/core/Tensor.h>

#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "dfm/base/progress.h"
#include "dfm/data/dataset.h"
#include "dfm/models/dit/dit.h"
#include "dfm/train/config.h"
#include "train/layout.h"

namespace dfm::train {

// Lines on a stream, with a progress bar under them where stderr is a terminal. Without a stream (ranks that do not
// speak) it does nothing.
class Console {
 public:
  explicit Console(std::FILE* out) : out_(out) {}
  void say(const std::string& line);
  void start_bar(std::int64_t train_iters, std::int64_t done);
  void advance_bar(const std::string& note);
  void finish_bar();

 private:
  std::FILE* out_;
  std::optional<Progress> bar_;
};

// What is trained, on what, with what, where: a line each.
std::vector<std::string> describe_run(const TrainConfig& config, const std::string& recipe, const models::Dit& model,
                                      const data::Dataset& dataset, at::Device device, Precision precision,
                                      const Layout& layout, std::int64_t done);

// Floating-point operations a second at most, dense bf16; 0 where it is not known.
double peak_flops(const std::string& device_name, Precision precision);
// The most memory used so far: of the GPU's tensors, or of this process.
std::string describe_memory(at::Device device);

}  // namespace dfm::train
