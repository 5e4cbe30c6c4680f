#pragma once
// SIGTERM and SIGINT while it lives: the first asks for the end of the run after this step, a second ends the process
// at once.
namespace dfm::train {

class StopSignals {
 public:
  explicit StopSignals(bool is_active);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  // 0, or the number of the signal that came.
  [[nodiscard]] static int received();

 private:
  bool is_active_;
};

}  // namespace dfm::train
