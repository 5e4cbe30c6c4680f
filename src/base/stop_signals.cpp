#include "dfm/base/stop_signals.h"

#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>

namespace dfm {
namespace {

constexpr std::array kSignals = {SIGTERM, SIGINT};
volatile std::sig_atomic_t signal_received = 0;
const char* text_to_write = "";
std::array<struct sigaction, kSignals.size()> previous;

// Only async-signal-safe calls.
void on_signal(int signal) {
  if (signal_received != 0) _exit(128 + signal);
  signal_received = signal;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text_to_write, std::strlen(text_to_write));
}

}  // namespace

StopSignals::StopSignals(bool is_active, const char* text) : is_active_(is_active) {
  signal_received = 0;
  text_to_write = text;
  if (!is_active_) return;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // reads and writes under way go on
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignals::~StopSignals() {
  if (!is_active_) return;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

int StopSignals::received() { return signal_received; }

}  // namespace dfm
