#pragma once
// The registry behind Watch, and its text form, by which ranks tell each other where they are.
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "comm/watch.h"

namespace dfm::comm {

// An operation as messages name it: "all_reduce number 41 of group data (ranks 0, 2)".
struct OperationInfo {
  std::string group;         // its name
  std::vector<int> ranks;    // of the world
  std::uint64_t number = 0;  // among the group's collectives, or among its exchanges
  std::string kind;
  std::vector<int> peers;  // of the world; empty: a collective
  double seconds = 0;      // its age

  [[nodiscard]] std::string group_key() const;
  [[nodiscard]] std::string describe() const;
};

// Where a rank is.
struct RankState {
  std::string place;                           // World::set_place
  std::map<std::string, std::uint64_t> begun;  // group key -> collectives that it has begun
  std::optional<OperationInfo> oldest;         // the oldest under way

  [[nodiscard]] std::string to_text() const;
  static RankState from_text(const std::string& text);  // what is malformed is left out
};

class Operations : public Watch {
 public:
  using Clock = std::chrono::steady_clock;
  std::uint64_t begin(const Group& group, const char* kind, const std::vector<int>& peers) override;
  // For waits that belong to no group.
  std::uint64_t begin(const std::string& name, const std::vector<int>& ranks, const char* kind);
  void end(std::uint64_t operation) override;
  void end_when(std::uint64_t operation, std::function<bool()> is_done) override;

  void set_place(const std::string& place);
  void ask_asynchronous();  // the watchdog: ends those that are done
  // This process was stopped for a while: that was nobody's wait.
  void forgive(std::chrono::duration<double> pause);
  [[nodiscard]] RankState state() const;

 private:
  struct Open {
    OperationInfo info;
    Clock::time_point since;
    std::function<bool()> is_done;
  };
  std::uint64_t open(OperationInfo info);

  mutable std::mutex mutex_;
  std::string place_ = "start";
  std::uint64_t next_ = 1;
  std::map<std::uint64_t, Open> open_;  // in the order of begin()
  std::map<std::string, std::uint64_t> begun_, exchanges_;
};

// The line for an operation that is older than the timeout, from the states of all ranks (empty: unknown).
// `is_silent`: whether a rank's process has stopped telling its state.
std::string describe_stuck(const OperationInfo& operation, const std::vector<std::optional<RankState>>& states,
                           const std::vector<bool>& is_silent);
// "1, 2, 5"
std::string list_ranks(const std::vector<int>& ranks);
// "rank 1", "ranks 1, 2"
std::string name_ranks(const std::vector<int>& ranks);

}  // namespace dfm::comm
