#pragma once
// SIGTERM and SIGINT while it lives: the first asks for the end of the run in good order, a second ends the process at
// once.
namespace dfm {

class StopSignals {
 public:
  // `text`: written to stderr when the first comes; must outlive this object.
  StopSignals(bool is_active, const char* text);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  // 0, or the number of the signal that came.
  [[nodiscard]] static int received();

 private:
  bool is_active_;
};

}  // namespace dfm
