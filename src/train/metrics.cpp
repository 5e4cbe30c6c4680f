#include "dfm/train/metrics.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace dfm::train {
namespace {

std::string number(double value) { return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null"; }

// (iteration, loss) of a line, or nothing when a kill has cut it.
std::optional<std::pair<std::int64_t, double>> parse_line(std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  const auto iteration = json.find("iteration");
  const auto loss = json.find("loss");
  if (iteration == json.end() || !iteration->is_number_integer() || loss == json.end()) return std::nullopt;
  return std::pair{iteration->get<std::int64_t>(),
                   loss->is_number() ? loss->get<double>() : std::numeric_limits<double>::quiet_NaN()};
}

// Keeps what is whole and not after `last_iteration`.
std::string kept_lines(std::string_view text, std::int64_t last_iteration, LossCurve& losses) {
  std::string kept;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) break;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    const auto parsed = parse_line(line);
    if (!parsed || parsed->first > last_iteration) continue;
    losses.push_back(*parsed);
    kept.append(line).push_back('\n');
  }
  return kept;
}

File open_for_append(const std::filesystem::path& path, std::int64_t last_iteration, LossCurve& losses) {
  std::string kept;
  if (std::filesystem::exists(path)) kept = kept_lines(read_text_file(path), last_iteration, losses);
  write_file_atomically(path, kept);
  return File(path, File::Mode::kAppend);
}

}  // namespace

std::string to_json_line(const StepMetrics& m) {
  const double flops_per_second = m.seconds > 0 ? m.flops / m.seconds : 0;
  return fmt::format(
      "{{\"iteration\": {}, \"loss\": {}, \"grad_norm\": {}, \"learning_rate\": {}, \"tokens\": {}, \"seconds\": "
      "{:.6g}, \"data_wait_seconds\": {:.6g}, \"padded_tokens\": {}, \"rows\": {}, \"consumed_samples\": {}, "
      "\"bad_samples\": {}, \"tflops\": {:.6g}}}",
      m.iteration, number(m.loss), number(m.grad_norm), number(m.learning_rate), m.tokens, m.seconds,
      m.data_wait_seconds, m.padded_tokens, m.rows, m.consumed_samples, m.bad_samples, flops_per_second * 1e-12);
}

MetricsFile::MetricsFile(const std::filesystem::path& run_folder, std::int64_t last_iteration)
    : file_(open_for_append(run_folder / kFileName, last_iteration, losses_)) {}

void MetricsFile::append(const StepMetrics& metrics) {
  losses_.emplace_back(metrics.iteration, metrics.loss);
  file_.write(as_bytes(to_json_line(metrics) + "\n"));
}

void Window::add(const StepMetrics& m) {
  ++steps_;
  if (std::isfinite(m.loss)) {
    ++steps_with_loss_;
    sum_.loss += m.loss;
    sum_.grad_norm += m.grad_norm;
  }
  sum_.iteration = m.iteration;
  sum_.learning_rate = m.learning_rate;
  sum_.tokens += m.tokens;
  sum_.padded_tokens += m.padded_tokens;
  sum_.bad_samples += m.bad_samples;
  sum_.seconds += m.seconds;
  sum_.data_wait_seconds += m.data_wait_seconds;
  sum_.flops += m.flops;
  sum_.num_ranks = m.num_ranks;
}

std::string Window::line(std::int64_t train_iters, double peak_flops) const {
  const double seconds = std::max(sum_.seconds, 1e-9);
  const auto steps = static_cast<double>(std::max<std::int64_t>(steps_, 1));
  const auto with_loss = static_cast<double>(std::max<std::int64_t>(steps_with_loss_, 1));
  const auto padding = static_cast<double>(sum_.padded_tokens - sum_.tokens);
  const double flops_per_second = sum_.flops / seconds / sum_.num_ranks;
  const int width = static_cast<int>(fmt::formatted_size("{}", train_iters));
  std::string text = fmt::format(
      "Iteration {:>{}}/{}, Loss: {:.6f}, LR: {:.1e}, Grad norm: {:.3f}, Tokens/s: {:.0f}, Step: {:.3f} s, Data wait: "
      "{:.1f}%, Padding: {:.1f}%, TFLOP/s{}: {:.2f}",
      sum_.iteration, width, train_iters, sum_.loss / with_loss, sum_.learning_rate, sum_.grad_norm / with_loss,
      static_cast<double>(sum_.tokens) / seconds, seconds / steps, 100 * sum_.data_wait_seconds / seconds,
      sum_.padded_tokens > 0 ? 100 * padding / static_cast<double>(sum_.padded_tokens) : 0.0,
      sum_.num_ranks > 1 ? "/rank" : "", flops_per_second * 1e-12);
  if (peak_flops > 0) text += fmt::format(", MFU: {:.1f}%", 100 * flops_per_second / peak_flops);
  if (sum_.bad_samples > 0) text += fmt::format(", Bad samples: {}", sum_.bad_samples);
  return text;
}

}  // namespace dfm::train
