#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/file.h"
#include "dfm/train/metrics.h"

// The picture is plain SVG text: it opens in any browser and needs no library.
namespace dfm::train {
namespace {

constexpr double kWidth = 900, kHeight = 480;
constexpr double kLeft = 76, kRight = 24, kTop = 52, kBottom = 58;
constexpr std::size_t kMostPoints = 1500;  // of a line: more than pixels gain nothing

// Steps of 1, 2 or 5 times a power of ten, about `count` of them.
double tick_step(double range, int count) {
  const double raw = range / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power) return factor * power;
  }
  return 10 * power;
}

struct Axis {
  double low = 0, high = 1, step = 1;
  double pixel_low = 0, pixel_high = 1;
  [[nodiscard]] double pixel(double value) const {
    return pixel_low + (std::clamp(value, low, high) - low) / (high - low) * (pixel_high - pixel_low);
  }
};

LossCurve finite_only(const LossCurve& losses) {
  LossCurve result;
  std::copy_if(losses.begin(), losses.end(), std::back_inserter(result),
               [](const auto& point) { return std::isfinite(point.second); });
  return result;
}

// Exponential mean over about 3% of the run, started without bias.
LossCurve smoothed(const LossCurve& losses) {
  const double span = std::clamp(static_cast<double>(losses.size()) * 0.03, 1.0, 500.0);
  const double keep = std::exp(-1 / span);
  LossCurve result;
  double sum = 0, weight = 0;
  for (const auto& [iteration, loss] : losses) {
    sum = keep * sum + loss;
    weight = keep * weight + 1;
    result.emplace_back(iteration, sum / weight);
  }
  return result;
}

Axis loss_axis(const LossCurve& losses) {
  std::vector<double> values;
  values.reserve(losses.size());
  for (const auto& point : losses) values.push_back(point.second);
  std::sort(values.begin(), values.end());
  // The first steps are far above the rest: they run out of the picture rather than flatten it.
  const double high = values[std::min(values.size() - 1, values.size() * 99 / 100)];
  const double low = values.front();
  const double range = std::max(high - low, std::max(std::abs(high) * 0.1, 1e-6));
  const double step = tick_step(range, 6);
  Axis axis;
  axis.step = step;
  axis.low = std::floor(low / step) * step;
  axis.high = std::max(std::ceil(high / step) * step, axis.low + step);
  axis.pixel_low = kHeight - kBottom;
  axis.pixel_high = kTop;
  return axis;
}

Axis iteration_axis(const LossCurve& losses) {
  Axis axis;
  axis.low = 0;
  axis.high = std::max(1.0, static_cast<double>(losses.back().first));
  axis.step = std::max(1.0, tick_step(axis.high, 8));
  axis.pixel_low = kLeft;
  axis.pixel_high = kWidth - kRight;
  return axis;
}

std::string polyline(const LossCurve& losses, const Axis& x, const Axis& y, const std::string& style) {
  std::string points;
  const std::size_t stride = (losses.size() + kMostPoints - 1) / kMostPoints;
  for (std::size_t i = 0; i < losses.size(); i += stride) {
    // The last point is always there: it is the one that people read.
    const auto& [iteration, loss] = losses[i + stride >= losses.size() ? losses.size() - 1 : i];
    points += fmt::format("{:.1f},{:.1f} ", x.pixel(static_cast<double>(iteration)), y.pixel(loss));
  }
  return fmt::format("<polyline fill=\"none\" {} points=\"{}\"/>\n", style, points);
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<') {
      result += "&lt;";
    } else if (c == '>') {
      result += "&gt;";
    } else if (c == '&') {
      result += "&amp;";
    } else {
      result += c;
    }
  }
  return result;
}

std::string grid(const Axis& x, const Axis& y) {
  std::string svg;
  const double bottom = kHeight - kBottom, right = kWidth - kRight;
  for (int i = 0; y.low + i * y.step <= y.high + y.step * 1e-6; ++i) {
    const double value = y.low + i * y.step;
    svg += fmt::format("<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e4e4e4\"/>\n", kLeft, right,
                       y.pixel(value), y.pixel(value));
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>\n", kLeft - 8, y.pixel(value) + 4,
                       std::abs(value) < y.step * 1e-6 ? 0.0 : value);
  }
  for (int i = 0; i * x.step <= x.high + x.step * 1e-6; ++i) {
    const double value = i * x.step;
    svg += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{}\" y2=\"{}\" stroke=\"#555\"/>\n", x.pixel(value),
                       x.pixel(value), bottom, bottom + 5);
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.0f}</text>\n", x.pixel(value),
                       bottom + 20, value);
  }
  svg += fmt::format("<path d=\"M{} {}V{}H{}\" fill=\"none\" stroke=\"#555\"/>\n", kLeft, kTop, bottom, right);
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">iteration</text>\n", (kLeft + right) / 2,
                     kHeight - 14);
  svg += fmt::format("<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\">loss</text>\n",
                     (kTop + bottom) / 2);
  return svg;
}

}  // namespace

void write_loss_plot(const std::filesystem::path& path, const std::string& title, const LossCurve& losses) {
  const LossCurve raw = finite_only(losses);
  if (raw.empty()) return;
  const LossCurve mean = smoothed(raw);
  const Axis x = iteration_axis(raw);
  const Axis y = loss_axis(raw);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n<rect width=\"{0}\" height=\"{1}\" "
      "fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += fmt::format("<text x=\"{}\" y=\"26\" font-size=\"16\">{}</text>\n", kLeft, escaped(title));
  svg += grid(x, y);
  svg += polyline(raw, x, y, "stroke=\"#9db8d9\" stroke-width=\"0.8\"");
  svg += polyline(mean, x, y, "stroke=\"#1f4e8c\" stroke-width=\"2.2\"");
  svg += fmt::format(
      "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">each step thin, running mean bold: {:.4f} after {} steps</text>\n",
      kWidth - kRight, kTop - 8, mean.back().second, mean.back().first);
  svg += "</svg>\n";
  write_file_atomically(path, svg);
}

}  // namespace dfm::train
