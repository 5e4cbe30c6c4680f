#pragma once
// The threads that keep a job from waiting for ever. The courier alone talks to the store (whose answer may not come);
// the watcher never waits for anything but time, so that it can end the process whatever happens.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/key_store.h"
#include "comm/member.h"
#include "comm/operations.h"
#include "comm/rendezvous.h"
#include "dfm/base/error.h"

namespace dfm::comm {

class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  Watchdog(const Launch& launch, std::string command, Seconds timeout, std::vector<Member> members,
           std::shared_ptr<KeyStore> store, Operations& operations);
  ~Watchdog() { stop(); }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  bool report(ExitCode code, const std::string& line);
  [[nodiscard]] ExitCode first_cause() const;
  [[nodiscard]] std::string label() const;
  [[noreturn]] void quit(ExitCode cause);
  // All is well and ends: who goes now is not dead.
  void let_all_go() { all_have_left_ = true; }
  void stop();

 private:
  // Another rank that this one looks after: by its process, or by its heartbeat.
  struct Peer {
    int rank = 0;
    int process = -1;  // pidfd
    bool is_dead = false;
  };
  struct Heard {  // of a rank's published state
    std::string beat;
    Clock::time_point changed;
    RankState state;
  };

  void open_peers();
  // The courier.
  void run_courier();
  void deliver(std::unique_lock<std::mutex>& lock);
  void look_for_failure();
  void publish();
  void hear(int rank);
  // Has `question` answered by the courier; nothing after three seconds, or without a store.
  template <typename Answer>
  std::optional<Answer> ask(std::function<Answer(KeyStore&)> question);
  // The watcher.
  void run_watcher();
  void look_after_peers(int wait_milliseconds);
  void check_failure_of_others();
  void check_dead();
  void check_store();
  void check_operations();
  [[nodiscard]] std::string describe_dead(int rank, const std::string& how);
  void collect_states(std::vector<std::optional<RankState>>& states, std::vector<bool>& is_silent);
  // Reports what this thread has found, prints it if it is the job's first, and ends the process.
  [[noreturn]] void end_with(const std::string& line);
  bool claim(ExitCode code, const std::string& line, bool wants_label);
  [[nodiscard]] bool is_lowest_alive();
  [[nodiscard]] bool has_everybody_left();

  const Launch launch_;
  const std::string command_;
  const Seconds timeout_;
  const std::vector<Member> members_;
  const std::shared_ptr<KeyStore> store_;
  Operations& operations_;

  std::vector<Peer> peers_;     // of this host; the watcher's alone after the start
  std::optional<int> beating_;  // the rank whose heartbeat this one watches

  mutable std::mutex mutex_;
  std::condition_variable wake_courier_;
  std::deque<std::function<void(KeyStore&)>> questions_;
  std::map<int, Heard> heard_;
  std::optional<FailureNote> failure_;  // the job's first
  std::optional<std::string> lost_;     // why there is no store any more
  std::string label_;
  Clock::time_point courier_seen_ = Clock::now();
  std::uint64_t beat_ = 0;
  std::string published_;
  Clock::time_point published_at_{}, heard_at_{};

  std::atomic<bool> stopping_ = false;
  std::atomic<bool> has_reported_ = false;  // the main thread prints and ends
  std::atomic<bool> is_acknowledged_ = false;
  std::atomic<bool> has_claimed_ = false;  // one report a process
  std::atomic<bool> is_deaf_ = false;      // the store does not answer
  std::atomic<bool> has_printed_alone_ = false;
  std::atomic<bool> all_have_left_ = false;
  std::atomic<bool> courier_has_ended_ = false;
  int wake_watcher_ = -1;  // eventfd
  std::thread courier_, watcher_;
};

}  // namespace dfm::comm
