#include "dfm/train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "train/tiny_run.h"

namespace dfm::train {
namespace {

StepMetrics metrics_of(std::int64_t iteration, double loss) {
  StepMetrics metrics;
  metrics.iteration = iteration;
  metrics.loss = loss;
  metrics.grad_norm = 0.532;
  metrics.learning_rate = 1e-4;
  metrics.tokens = 6943;
  metrics.padded_tokens = 7168;
  metrics.seconds = 0.5;
  metrics.data_wait_seconds = 0.001;
  metrics.flops = 1e11;
  return metrics;
}

TEST(StepMetrics, BecomeOneLineOfJson) {
  const auto json = nlohmann::json::parse(to_json_line(metrics_of(7, 0.1234567891234)));
  EXPECT_EQ(json["iteration"], 7);
  EXPECT_NE(to_json_line(metrics_of(7, 0.1234567891234)).find("\"loss\": 0.123456789,"), std::string::npos);
  EXPECT_DOUBLE_EQ(json["grad_norm"], 0.532);
  EXPECT_DOUBLE_EQ(json["learning_rate"], 1e-4);
  EXPECT_EQ(json["tokens"], 6943);
  EXPECT_DOUBLE_EQ(json["seconds"], 0.5);
  EXPECT_TRUE(nlohmann::json::parse(to_json_line(metrics_of(7, NAN)))["loss"].is_null());
}

TEST(MetricsFile, DropsLinesAfterTheCheckpointAndOneThatWasCut) {
  const test::TempFolder folder;
  {
    MetricsFile file(folder.path(), 0);
    for (int i = 1; i <= 5; ++i) file.append(metrics_of(i, i));
  }
  std::ofstream(folder.path() / MetricsFile::kFileName, std::ios::app) << "{\"iteration\": 6, \"lo";
  MetricsFile file(folder.path(), 3);
  ASSERT_EQ(file.losses().size(), 3U);
  EXPECT_EQ(file.losses().back(), (std::pair<std::int64_t, double>{3, 3.0}));
  file.append(metrics_of(4, 40));
  std::ifstream in(folder.path() / MetricsFile::kFileName);
  std::vector<std::int64_t> iterations;
  for (std::string line; std::getline(in, line);) iterations.push_back(nlohmann::json::parse(line)["iteration"]);
  EXPECT_EQ(iterations, (std::vector<std::int64_t>{1, 2, 3, 4}));
}

TEST(MetricsFile, StartsAnewForANewRun) {
  const test::TempFolder folder;
  { MetricsFile(folder.path(), 0).append(metrics_of(1, 1)); }
  EXPECT_TRUE(MetricsFile(folder.path(), 0).losses().empty());
}

TEST(Window, PrintsTheConsoleLine) {
  Window window;
  window.add(metrics_of(99, 0.3));
  window.add(metrics_of(100, 0.32469));
  EXPECT_EQ(window.line(10000, 0),
            "Iteration   100/10000, Loss: 0.312345, LR: 1.0e-04, Grad norm: 0.532, Tokens/s: 13886, Step: 0.500 s, "
            "Data wait: 0.2%, Padding: 3.1%, TFLOP/s: 0.20");
  EXPECT_NE(window.line(10000, 2e12).find(", MFU: 10.0%"), std::string::npos);
}

std::string plot_of(const LossCurve& losses) {
  const test::TempFolder folder;
  write_loss_plot(folder.path() / "loss.svg", "a < b & c", losses);
  return read_text_file(folder.path() / "loss.svg");
}

TEST(LossPlot, HasAxesTicksAndBothCurves) {
  LossCurve losses;
  for (int i = 1; i <= 5000; ++i) losses.emplace_back(i, 1.0 / i + 0.2 + 0.05 * std::sin(i));
  const std::string svg = plot_of(losses);
  EXPECT_TRUE(svg.starts_with("<svg xmlns="));
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  for (const char* text : {">iteration<", ">loss<", ">5000<", ">1000<", ">0.2<"})
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  std::size_t lines = 0;
  for (std::size_t at = svg.find("<polyline"); at != std::string::npos; at = svg.find("<polyline", at + 1)) ++lines;
  EXPECT_EQ(lines, 2U);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_LT(svg.size(), 100'000U);
}

TEST(LossPlot, CopesWithOneStepAndWithStepsWithoutALoss) {
  EXPECT_EQ(plot_of({{1, 0.5}}).find("nan"), std::string::npos);
  EXPECT_EQ(plot_of({{1, 0.5}, {2, NAN}, {3, 0.5}}).find("nan"), std::string::npos);
}

}  // namespace
}  // namespace dfm::train
