#include "dfm/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>

namespace dfm {
namespace {

std::atomic<bool> line_is_open = false;
constexpr auto kTerminalPeriod = std::chrono::milliseconds(100);
constexpr auto kLogPeriod = std::chrono::seconds(10);

}  // namespace

Progress::Progress(std::string title, std::uint64_t total, std::string unit, std::uint64_t done)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      total_(total),
      done_(done),
      done_at_start_(done),
      start_(std::chrono::steady_clock::now()),
      last_drawn_(start_),
      is_terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { clear_line(); }

void Progress::advance(std::uint64_t items) {
  done_ += items;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_drawn_ <
      (is_terminal_ ? std::chrono::nanoseconds(kTerminalPeriod) : std::chrono::nanoseconds(kLogPeriod)))
    return;
  last_drawn_ = now;
  draw();
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (is_terminal_) draw();
  clear_line();
}

void Progress::draw() {
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_ - done_at_start_) / seconds : 0;
  std::string text = fmt::format("{}: {}", title_, done_);
  if (total_ > 0) {
    const double share = static_cast<double>(done_) / static_cast<double>(total_);
    constexpr int kWidth = 24;
    const int filled = static_cast<int>(share * kWidth);
    text = fmt::format("{} [{:=<{}}{: <{}}] {}/{}", title_, "", filled, "", kWidth - filled, done_, total_);
    if (rate > 0 && done_ <= total_)
      text += fmt::format(", ETA {}", format_duration(static_cast<double>(total_ - done_) / rate));
  }
  text += fmt::format(", {:.{}f} {}/s", rate, rate < 10 ? 2 : 0, unit_);
  if (!note_.empty()) text += ", " + note_;
  if (is_terminal_) {
    fmt::print(stderr, "\r\033[K{}", text);
    std::fflush(stderr);
    line_is_open = true;
  } else {
    fmt::print(stderr, "{}\n", text);
  }
}

void Progress::clear_line() {
  if (line_is_open.exchange(false)) fmt::print(stderr, "\n");
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<std::uint64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) value /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace dfm
