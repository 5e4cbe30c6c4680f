#pragma once
// What groups tell the watchdog: which operation of which group this rank is in. From it come the timeout, and the
// messages about ranks that others wait for.
#include <cstdint>
#include <functional>
#include <vector>

#include "dfm/comm/group.h"

namespace dfm::comm {

// Thread safe and cheap (one mutex). The watchdog ends the process when an operation gets older than the timeout, when
// a peer dies or when another rank fails: groups need no timeouts of their own and may wait as long as it takes.
class Watch {
 public:
  virtual ~Watch() = default;
  // An operation starts, in the order in which the group's operations are called; `kind` is a literal ("all_reduce").
  // Collectives are numbered from 1 for each group. `peers`: for exchange, the ranks of the group it is with; they are
  // numbered apart, since not every rank takes part.
  virtual std::uint64_t begin(const Group& group, const char* kind, const std::vector<int>& peers = {}) = 0;
  virtual void end(std::uint64_t operation) = 0;
  // Instead of end(): the watchdog's thread asks every 0.3 s, until the answer is true (once true, never asked again).
  // An Error that it throws ends the run.
  virtual void end_when(std::uint64_t operation, std::function<bool()> is_done) = 0;
};

// begin() and end() around a wait.
class OperationScope {
 public:
  OperationScope(Watch& watch, const Group& group, const char* kind, const std::vector<int>& peers = {})
      : watch_(watch), operation_(watch.begin(group, kind, peers)) {}
  ~OperationScope() { watch_.end(operation_); }
  OperationScope(const OperationScope&) = delete;
  OperationScope& operator=(const OperationScope&) = delete;

 private:
  Watch& watch_;
  std::uint64_t operation_;
};

}  // namespace dfm::comm
