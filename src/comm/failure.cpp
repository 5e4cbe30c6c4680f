#include "dfm/comm/failure.h"

#include "comm/rendezvous.h"
#include "dfm/comm/world.h"

namespace dfm::comm {
namespace {

constexpr std::chrono::seconds kPatience(5);  // for a store that may come to be a moment later

// A rank that fails before the others have met opens or reaches the store for this alone.
std::shared_ptr<KeyStore> store_for_claim(const Launch& launch) {
  if (auto store = joining_store()) return store;
  std::shared_ptr<KeyStore> store;
  try {
    store = open_store(launch, kPatience);
  } catch (const Error&) {
    // The port is another program's. That may be another job's store, at which the ranks of this one still can meet.
    if (hosts_store(launch)) store = connect_store(launch, kPatience);
  }
  if (store) set_joining_store(store);
  return store;
}

}  // namespace

Claim claim_failure(const Launch& launch, ExitCode code, const std::string& line) {
  if (launch.world_size == 1) return {true, "", code};
  keep_from_termination();
  if (World* world = World::current()) {
    const bool is_first = world->report_failure(code, line);
    return {is_first, world->failure_label(), world->first_cause()};
  }
  try {
    const auto store = store_for_claim(launch);
    if (!store) return {true, "", code};
    const FailureNote note = place_claim(*store, {code, launch.rank, line});
    return {note.rank == launch.rank, "", note.code};
  } catch (const StoreLost&) {
    return {true, "", code};
  }
}

void end_failed(const Launch& launch, ExitCode cause) {
  if (World* world = World::current()) world->quit(cause);
  if (const auto store = joining_store()) {
    try {
      acknowledge_failure(*store, launch);
    } catch (const StoreLost&) {  // then nobody is left to tell
    }
  }
  exit_now(cause);
}

}  // namespace dfm::comm
