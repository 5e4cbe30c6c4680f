#pragma once
// Point-to-point messages through shared memory: a ring of bytes for each ordered pair of ranks, and a doorbell for
// each rank that its peers ring when they have put something into a ring or taken something out of one.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/shm_segment.h"
#include "comm/shm_window.h"
#include "dfm/comm/group.h"

namespace dfm::comm {

class ShmMailboxes {
 public:
  static std::size_t num_bytes(int num_ranks);
  // `memory`: num_bytes() of a segment, zero before the first rank uses it.
  ShmMailboxes(std::byte* memory, int num_ranks, int rank, int num_spins);

  // Returns when all receives are there and all sends are in the rings. `group`: its name, for messages. CommError: a
  // message of another size than the receiver expects.
  void exchange(const std::string& group, const std::vector<Transfer>& sends, const std::vector<Transfer>& receives,
                Staging& staging);

 private:
  struct Ring;     // of one ordered pair
  struct Message;  // under way: a header with its size, then its bytes
  struct Lane;     // messages of one ordered pair, one after the other

  Ring& ring(int from, int to) const;
  std::byte* ring_bytes(int from, int to) const;
  bool put(Lane& lane) const;  // true: something moved
  bool take(Lane& lane, const std::string& group) const;
  bool move(Lane& lane, bool is_send, const std::string& group) const;
  void ring_doorbell(int peer) const;

  std::byte* memory_;
  int num_ranks_;
  int rank_;
  int num_spins_;
};

}  // namespace dfm::comm
