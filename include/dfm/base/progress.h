#pragma once
// A progress bar with rate and ETA: redrawn in place on a terminal, otherwise one line every ten seconds. Not thread
// safe.
//   Progress bar("prepare", num_samples, "samples");
//   bar.advance(1); ... bar.finish();
#include <chrono>
#include <cstdint>
#include <string>

namespace dfm {

class Progress {
 public:
  // total 0: unknown. `done` items are already there (a continued run): they count for the bar, not for the rate.
  Progress(std::string title, std::uint64_t total, std::string unit, std::uint64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(std::uint64_t items);
  void set_note(std::string note) { note_ = std::move(note); }  // shown at the end of the bar
  void finish();
  // Ends a line that a bar has drawn on a terminal, so that other output starts on a fresh one.
  static void clear_line();

 private:
  void draw();
  std::string title_, unit_, note_;
  std::uint64_t total_, done_, done_at_start_;
  std::chrono::steady_clock::time_point start_, last_drawn_;
  bool is_terminal_, finished_ = false;
};

// "1:05", "2:03:04"
std::string format_duration(double seconds);
// "512 B", "1.2 MiB"
std::string format_bytes(std::uint64_t bytes);

}  // namespace dfm
