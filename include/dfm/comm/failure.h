#pragma once
// How a job of many ranks ends on an error: one rank prints, once, and all exit with the first cause's code. This works
// before the ranks have met too (a mistake on the command line is found by all of them).
//
//   const comm::Claim claim = comm::claim_failure(launch, error.code(), error.what());
//   if (claim.is_first) fmt::print(stderr, "dfm train: error: {}{}\n", claim.label, error.what());
//   comm::end_failed(launch, claim.cause);
#include <string>

#include "dfm/base/error.h"
#include "dfm/comm/launch.h"

namespace dfm::comm {

struct Claim {
  bool is_first = true;  // of the job: this process prints
  std::string label;     // "rank 2: " when the failure is one rank's and others have none like it
  ExitCode cause = ExitCode::kInternal;
};

// Takes a few seconds at most, also when the other ranks cannot be reached; then each prints.
Claim claim_failure(const Launch& launch, ExitCode code, const std::string& line);

// Lets the others learn of the failure, then ends this process at once: no destructors, which might wait for a peer.
[[noreturn]] void end_failed(const Launch& launch, ExitCode cause);

}  // namespace dfm::comm
