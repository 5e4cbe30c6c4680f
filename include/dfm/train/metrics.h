#pragma once
// What is known about a step, and where it is written: metrics.jsonl (a line a step), the console, the loss curve.
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "dfm/base/file.h"

namespace dfm::train {

struct StepMetrics {
  std::int64_t iteration = 0;  // counts from 1
  double loss = 0;             // sum over real tokens of the step / their number
  double grad_norm = 0;        // before clipping
  double learning_rate = 0;
  std::int64_t tokens = 0;         // real ones
  std::int64_t padded_tokens = 0;  // of all rows, padding included
  std::int64_t rows = 0;
  std::int64_t consumed_samples = 0;  // after the step
  std::int64_t bad_samples = 0;       // of this step, weight 0
  double seconds = 0;
  double data_wait_seconds = 0;
  double flops = 0;  // of forward and backward, on all ranks
  int num_ranks = 1;
};

// One line without its end. A loss that is not a number (a step without a good sample) is null.
std::string to_json_line(const StepMetrics& metrics);
using LossCurve = std::vector<std::pair<std::int64_t, double>>;  // (iteration, loss)

// metrics.jsonl: appended line by line; a line is in the file when append() returns.
class MetricsFile {
 public:
  static constexpr const char* kFileName = "metrics.jsonl";
  // Lines of iterations after `last_iteration`, and a line that a kill has cut, are dropped first; 0 starts anew.
  MetricsFile(const std::filesystem::path& run_folder, std::int64_t last_iteration);
  void append(const StepMetrics& metrics);
  // The losses in the file, in order.
  [[nodiscard]] const LossCurve& losses() const { return losses_; }

 private:
  LossCurve losses_;
  File file_;
};

// Averages since the last console line.
class Window {
 public:
  void add(const StepMetrics& metrics);
  // `Iteration  100/10000, Loss: 0.312345, LR: 1.0e-04, Grad norm: 0.532, Tokens/s: 6943, Step: 0.124 s, Data wait:
  // 0.2%, Padding: 3.1%, TFLOP/s: 0.10`; loss and grad norm of the window's mean. peak_flops, of one
  // rank; 0: unknown, no MFU. With several ranks TFLOP/s is that of one.
  [[nodiscard]] std::string line(std::int64_t train_iters, double peak_flops) const;
  [[nodiscard]] bool is_empty() const { return steps_ == 0; }
  void clear() { *this = {}; }

 private:
  std::int64_t steps_ = 0, steps_with_loss_ = 0;
  StepMetrics sum_;
};

// Writes the curve as SVG: each step thin, a running mean bold, axes with ticks.
void write_loss_plot(const std::filesystem::path& path, const std::string& title, const LossCurve& losses);

}  // namespace dfm::train
