#pragma once
// All ranks of a run: rendezvous, groups, and the promise that nothing waits for ever. One a process.
//
//   auto world = comm::World::join(comm::read_launch(), {.command = "train"});
//   comm::GroupPtr all = world->group("world", ranks);
//   world->set_place("iteration 12, backward");    // what a message about a stuck rank says
//   ...
//   world->leave();                                // every rank, when all is well
//
// A thread watches: a rank that has died, one that reported a failure, and an operation older than the timeout end this
// process with the first cause's exit code; the rank that found the cause prints it, once for the whole run.
#include <ATen/core/Tensor.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/comm/config.h"
#include "dfm/comm/group.h"
#include "dfm/comm/launch.h"

namespace dfm::comm {

struct WorldOptions {
  std::string command = "train";  // `dfm COMMAND: error: ...`
  Backend backend = Backend::kAuto;
  at::Device device = at::kCPU;  // of the tensors that groups carry
  std::chrono::duration<double> timeout = std::chrono::minutes(10);
};

class World {
 public:
  // Waits for all ranks. CommError: a port in use, ranks missing after the timeout (named), another binary on some
  // rank. A world of one has no store, no thread and no cost.
  static std::shared_ptr<World> join(const Launch& launch, const WorldOptions& options);
  static std::shared_ptr<World> solo();  // a world of this process by itself
  virtual ~World() = default;

  [[nodiscard]] virtual const Launch& launch() const = 0;
  [[nodiscard]] int rank() const { return launch().rank; }
  [[nodiscard]] int size() const { return launch().world_size; }
  [[nodiscard]] bool is_first() const { return rank() == 0; }
  [[nodiscard]] virtual Backend backend() const = 0;  // what kAuto has become

  // A group of these ranks of the world (ascending). Called by exactly them, in the same order; the group of one is
  // alone(). Lives as long as the world. ConfigError when the backend cannot serve these ranks (shm over hosts, nccl
  // with two ranks on one GPU).
  virtual GroupPtr group(const std::string& name, const std::vector<int>& ranks) = 0;
  // All ranks.
  [[nodiscard]] virtual GroupPtr all() = 0;

  // Slow and small, through the store; called by all ranks in the same order. The texts of all ranks, by rank.
  virtual std::vector<std::string> gather_text(const std::string& mine) = 0;
  // Each rank's text must be that of rank 0; else a CommError on every rank: `what`, the ranks, the first lines that
  // differ.
  void require_same(const std::string& what, const std::string& mine);

  // Rank 0 runs `body`, which waits for no other rank, and all wait for it. An Error that it ends with is thrown on
  // every rank: it is the job's, not that of one rank.
  void on_first(const std::function<void()>& body);

  virtual void set_place(const std::string& place) = 0;
  // Ends the run because of `code` and `line`. True for the one rank of the world whose report is the first: it prints.
  // Afterwards the process must quit(first_cause()). Callers use claim_failure() of dfm/comm/failure.h.
  virtual bool report_failure(ExitCode code, const std::string& line) = 0;
  [[nodiscard]] virtual ExitCode first_cause() const = 0;
  // "rank 2: " when the failure that this rank reported is its own, "" when all ranks reported the same.
  [[nodiscard]] virtual std::string failure_label() const = 0;
  // Ends the process at once, after the others have learned of the failure.
  [[noreturn]] virtual void quit(ExitCode cause) = 0;
  // The end of a good run: waits until all ranks are here, then stops watching.
  virtual void leave() = 0;

  // The world that this process has joined, or null: for the place where errors become lines.
  static World* current();
};

}  // namespace dfm::comm
