#include "comm/shm_mailboxes.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

constexpr std::int64_t kRingBytes = 128 << 10;
constexpr std::int64_t kHeaderBytes = 8;  // the size of what follows
constexpr std::size_t kLine = 64;

struct alignas(kLine) Doorbell {
  SharedWord word;
};

}  // namespace

// Bytes ever written to and read from the ring: at `written % kRingBytes` the next byte goes in.
struct ShmMailboxes::Ring {
  alignas(kLine) std::atomic<std::uint64_t> written;
  alignas(kLine) std::atomic<std::uint64_t> read;
};

struct ShmMailboxes::Message {
  Window window;
  std::int64_t position = 0;  // of header and bytes together
  std::array<std::byte, kHeaderBytes> header{};
  [[nodiscard]] std::int64_t total() const { return kHeaderBytes + window.num_bytes(); }
};

struct ShmMailboxes::Lane {
  int peer = 0;
  std::vector<Message> messages;
  std::size_t next = 0;
  [[nodiscard]] bool is_done() const { return next == messages.size(); }
};

std::size_t ShmMailboxes::num_bytes(int num_ranks) {
  const auto n = static_cast<std::size_t>(num_ranks);
  return n * sizeof(Doorbell) + n * n * sizeof(Ring) + n * (n - 1) * kRingBytes;
}

ShmMailboxes::ShmMailboxes(std::byte* memory, int num_ranks, int rank, int num_spins)
    : memory_(memory), num_ranks_(num_ranks), rank_(rank), num_spins_(num_spins) {}

ShmMailboxes::Ring& ShmMailboxes::ring(int from, int to) const {
  auto* rings = reinterpret_cast<Ring*>(memory_ + static_cast<std::size_t>(num_ranks_) * sizeof(Doorbell));
  return rings[from * num_ranks_ + to];
}

std::byte* ShmMailboxes::ring_bytes(int from, int to) const {
  const auto n = static_cast<std::size_t>(num_ranks_);
  const int number = from * (num_ranks_ - 1) + (to < from ? to : to - 1);  // no ring from a rank to itself
  return memory_ + n * sizeof(Doorbell) + n * n * sizeof(Ring) + static_cast<std::size_t>(number) * kRingBytes;
}

void ShmMailboxes::ring_doorbell(int peer) const {
  SharedWord& word = reinterpret_cast<Doorbell*>(memory_)[peer].word;
  word.value.fetch_add(1, std::memory_order_seq_cst);
  word.wake_all();
}

bool ShmMailboxes::put(Lane& lane) const {
  Ring& to = ring(rank_, lane.peer);
  std::byte* bytes = ring_bytes(rank_, lane.peer);
  Message& message = lane.messages[lane.next];
  const std::uint64_t written = to.written.load(std::memory_order_relaxed);
  const auto used = static_cast<std::int64_t>(written - to.read.load(std::memory_order_acquire));
  const auto at = static_cast<std::int64_t>(written % kRingBytes);
  std::int64_t count = std::min({kRingBytes - used, kRingBytes - at, message.total() - message.position});
  if (count == 0) return false;
  if (message.position < kHeaderBytes) {
    count = std::min(count, kHeaderBytes - message.position);
    const std::int64_t size = message.window.num_bytes();
    std::memcpy(message.header.data(), &size, sizeof size);
    std::memcpy(bytes + at, message.header.data() + message.position, static_cast<std::size_t>(count));
  } else {
    message.window.read(bytes + at, message.position - kHeaderBytes, count);
  }
  message.position += count;
  to.written.store(written + static_cast<std::uint64_t>(count), std::memory_order_release);
  return true;
}

bool ShmMailboxes::take(Lane& lane, const std::string& group) const {
  Ring& from = ring(lane.peer, rank_);
  const std::byte* bytes = ring_bytes(lane.peer, rank_);
  Message& message = lane.messages[lane.next];
  const std::uint64_t read = from.read.load(std::memory_order_relaxed);
  const auto filled = static_cast<std::int64_t>(from.written.load(std::memory_order_acquire) - read);
  const auto at = static_cast<std::int64_t>(read % kRingBytes);
  std::int64_t count = std::min({filled, kRingBytes - at, message.total() - message.position});
  if (count == 0) return false;
  if (message.position < kHeaderBytes) {
    count = std::min(count, kHeaderBytes - message.position);
    std::memcpy(message.header.data() + message.position, bytes + at, static_cast<std::size_t>(count));
  } else {
    message.window.write(bytes + at, message.position - kHeaderBytes, count);
  }
  const bool has_header = message.position < kHeaderBytes && message.position + count == kHeaderBytes;
  message.position += count;
  from.read.store(read + static_cast<std::uint64_t>(count), std::memory_order_release);
  std::int64_t size = 0;
  std::memcpy(&size, message.header.data(), sizeof size);
  if (has_header && size != message.window.num_bytes()) {
    throw CommError("exchange in group {}: got a message of {} bytes from rank {} of the group, want {}", group, size,
                    lane.peer, message.window.num_bytes());
  }
  return true;
}

// As far as it goes now.
bool ShmMailboxes::move(Lane& lane, bool is_send, const std::string& group) const {
  bool has_moved = false;
  while (!lane.is_done() && (is_send ? put(lane) : take(lane, group))) {
    has_moved = true;
    if (const Message& message = lane.messages[lane.next]; message.position == message.total()) ++lane.next;
  }
  if (has_moved) ring_doorbell(lane.peer);
  return has_moved;
}

void ShmMailboxes::exchange(const std::string& group, const std::vector<Transfer>& sends,
                            const std::vector<Transfer>& receives, Staging& staging) {
  const auto lanes_of = [&](const std::vector<Transfer>& transfers) {
    std::vector<Lane> lanes;
    for (const Transfer& transfer : transfers) {
      auto lane = std::find_if(lanes.begin(), lanes.end(), [&](const Lane& l) { return l.peer == transfer.peer; });
      if (lane == lanes.end()) lane = lanes.insert(lane, Lane{.peer = transfer.peer});
      lane->messages.push_back({.window = Window(transfer.tensor, staging)});
    }
    return lanes;
  };
  std::vector<Lane> outgoing = lanes_of(sends), incoming = lanes_of(receives);
  SharedWord& doorbell = reinterpret_cast<Doorbell*>(memory_)[rank_].word;
  while (true) {
    const std::uint32_t seen = doorbell.load();  // before looking at the rings: what changes later changes this too
    bool has_moved = false, is_done = true;
    for (Lane& lane : outgoing) has_moved |= move(lane, true, group);
    for (Lane& lane : incoming) has_moved |= move(lane, false, group);
    for (const Lane& lane : outgoing) is_done &= lane.is_done();
    for (const Lane& lane : incoming) is_done &= lane.is_done();
    if (is_done) return;
    if (!has_moved) doorbell.wait_while(seen, num_spins_);
  }
}

}  // namespace dfm::comm
