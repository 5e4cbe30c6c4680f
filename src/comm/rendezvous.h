#pragma once
// How ranks meet: a store that all can reach, and the list of who is there.
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/key_store.h"
#include "comm/member.h"
#include "dfm/base/error.h"

namespace dfm::comm {

// As the key "failure" holds it: the first failure of the job.
struct FailureNote {
  ExitCode code = ExitCode::kInternal;
  int rank = 0;
  std::string line;
  [[nodiscard]] std::string to_text() const;
  static FailureNote from_text(const std::string& text);
};

// The two halves of a claim. `place_claim` gives the note that stands; is_everywhere says whether, within half a
// second, all ranks have reported the same line.
FailureNote place_claim(KeyStore& store, const FailureNote& mine);
bool is_everywhere(KeyStore& store, const FailureNote& mine, int world_size);

// Opens the store or connects to it. CommError: a port in use, no store within the time.
std::shared_ptr<KeyStore> open_store(const Launch& launch, std::chrono::duration<double> timeout);
// As a client, whatever the rank; null when there is none within the time.
std::shared_ptr<KeyStore> connect_store(const Launch& launch, std::chrono::duration<double> timeout);

// All ranks, by rank, once they are here. CommError: some are not, or another program is among them. Ends the process
// when another rank has reported a failure.
std::vector<Member> meet(KeyStore& store, const Launch& launch, const Member& me,
                         std::chrono::duration<double> timeout);

// The store of a join under way, for claim_failure.
void set_joining_store(std::shared_ptr<KeyStore> store);
std::shared_ptr<KeyStore> joining_store();

// From here on SIGTERM is ignored: a launcher that ends all ranks at the first exit must not take the line with it.
void keep_from_termination();
// The last that a rank does in a job that failed, two seconds at most for each wait: the rank whose failure stands has
// printed it and says so, the others wait for that (their exit may be what ends it); the process that hosts the store
// waits until all have been here.
void acknowledge_failure(KeyStore& store, const Launch& launch);
// Flushes and ends, without destructors.
[[noreturn]] void exit_now(ExitCode code);

}  // namespace dfm::comm
