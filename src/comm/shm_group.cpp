// Each rank has a slot in shared memory. A collective goes over its tensor in chunks of a slot's half:
//
//   copy my bytes into my slot | all meet | take what I need out of the others' slots
//
// The halves alternate: a rank that fills a half again has met the others once since then, and they came to that
// meeting after they had read the half. So one meeting a chunk is enough (an all_reduce of much data has two: first
// each rank sums one part over all slots, then all read the sums).
#include "comm/shm_group.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "comm/ordered_reduce.h"
#include "comm/shm_mailboxes.h"
#include "comm/shm_segment.h"
#include "comm/shm_window.h"
#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::int64_t kHalfBytes = 512 << 10;
constexpr std::int64_t kSumByAllBytes = 16 << 10;  // up to here every rank sums everything: one meeting less
constexpr int kMaxRanks = 1024;
constexpr int kSpins = 2000;  // some microseconds: what a rank with a core of its own may be late

enum class Kind : std::uint32_t { kStart, kAllReduce, kAllGather, kReduceScatter, kAllToAll, kBroadcast, kBarrier };
constexpr std::array kKindNames = {"start",      "all_reduce", "all_gather", "reduce_scatter",
                                   "all_to_all", "broadcast",  "barrier"};

// What a rank says it is about to do: the others check that they do the same.
struct Announcement {
  Kind kind = Kind::kStart;
  std::uint32_t option = 0;  // Reduce, or the root
  std::int64_t dtype = 0;
  std::int64_t num_bytes = 0;
  bool operator==(const Announcement&) const = default;
  [[nodiscard]] std::string describe() const {
    return fmt::format("{} of {} bytes of {} (option {})", kKindNames[static_cast<std::size_t>(kind)], num_bytes,
                       at::toString(static_cast<at::ScalarType>(dtype)), option);
  }
};
struct alignas(kLine) AnnouncementLine {
  Announcement announcement;
};

struct alignas(kLine) Control {
  alignas(kLine) std::atomic<int> num_arrived;
  alignas(kLine) SharedWord meeting;  // their number so far
};

// Where things are in the segment.
struct Layout {
  explicit Layout(int num_ranks)
      : n(static_cast<std::size_t>(num_ranks)),
        mailboxes(sizeof(Control) + 2 * n * sizeof(AnnouncementLine)),
        slots(mailboxes + ShmMailboxes::num_bytes(num_ranks)),
        total(slots + 2 * n * kHalfBytes) {}
  std::size_t n, mailboxes, slots, total;
};

class ShmGroup final : public Group {
 public:
  ShmGroup(const GroupRequest& request, ShmSegment segment)
      : Group(request.name, request.ranks, request.rank),
        watch_(*request.watch),
        segment_(std::move(segment)),
        layout_(size()),
        num_spins_(request.may_spin ? kSpins : 0),
        mailboxes_(segment_.data() + layout_.mailboxes, size(), rank(), num_spins_) {}

  // The first meeting: afterwards nobody needs the segment's address.
  void start() {
    const OperationScope scope(watch_, *this, "start");
    begin_collective({.kind = Kind::kStart});
    meet_and_check();
    end_turn();
    segment_.close_address();
  }

  Work all_reduce(const at::Tensor& x, Reduce op) override;
  Work all_gather(const at::Tensor& out, const at::Tensor& in) override;
  Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override;
  Work all_to_all(const at::Tensor& out, const at::Tensor& in) override;
  Work broadcast(const at::Tensor& x, int root) override;
  Work exchange(const std::vector<Transfer>& sends, const std::vector<Transfer>& receives) override;
  void barrier() override;

 private:
  Control& control() const { return *reinterpret_cast<Control*>(segment_.data()); }
  Announcement& announcement(int of_rank) const {
    auto* lines = reinterpret_cast<AnnouncementLine*>(segment_.data() + sizeof(Control));
    return lines[half_ * size() + of_rank].announcement;
  }
  // The current half of a rank's slot. The halves of all ranks lie one behind the other.
  std::byte* slot(int of_rank) const {
    return segment_.data() + layout_.slots + static_cast<std::size_t>(half_ * size() + of_rank) * kHalfBytes;
  }

  void begin_collective(const Announcement& mine);
  void meet() const;
  void meet_and_check();  // the first meeting of a turn
  void end_turn() {
    half_ = 1 - half_;
    is_first_turn_ = false;
  }
  // Calls turn(offset, count) for the chunks of `num_bytes`; the other half is current after each.
  template <typename Turn>
  void for_each_chunk(std::int64_t num_bytes, std::int64_t chunk_bytes, Turn&& turn);
  std::vector<const std::byte*> parts_of_slots(std::int64_t offset) const;
  void require_flat(const char* operation, const at::Tensor& x) const;
  void require_parts(const char* operation, const at::Tensor& whole, const at::Tensor& part) const;
  void require_peer(const Transfer& transfer) const;
  std::int64_t part_chunk_bytes() const { return kHalfBytes / size() / static_cast<std::int64_t>(kLine) * kLine; }

  Watch& watch_;
  ShmSegment segment_;
  Layout layout_;
  int num_spins_;
  ShmMailboxes mailboxes_;
  Staging staging_{kHalfBytes};
  int half_ = 0;
  bool is_first_turn_ = true;  // of an operation
  Announcement mine_;
};

void ShmGroup::begin_collective(const Announcement& mine) {
  mine_ = mine;
  is_first_turn_ = true;
}

void ShmGroup::meet() const {
  Control& shared = control();
  const std::uint32_t meeting = shared.meeting.load();
  if (shared.num_arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < size()) {
    shared.meeting.wait_while(meeting, num_spins_);
    return;
  }
  shared.num_arrived.store(0, std::memory_order_relaxed);  // nobody comes to the next meeting before this one ends
  shared.meeting.value.store(meeting + 1, std::memory_order_seq_cst);
  shared.meeting.wake_all();
}

void ShmGroup::meet_and_check() {
  if (is_first_turn_) announcement(rank()) = mine_;
  meet();
  if (!is_first_turn_) return;
  for (int other = 0; other < size(); ++other) {
    if (announcement(other) == mine_) continue;
    throw InternalError("group {}: rank {} calls {}, rank {} calls {}: want the same operation on all ranks", name(),
                        ranks()[static_cast<std::size_t>(rank())], mine_.describe(),
                        ranks()[static_cast<std::size_t>(other)], announcement(other).describe());
  }
}

template <typename Turn>
void ShmGroup::for_each_chunk(std::int64_t num_bytes, std::int64_t chunk_bytes, Turn&& turn) {
  for (std::int64_t offset = 0; offset < num_bytes || is_first_turn_; offset += chunk_bytes) {
    turn(offset, std::min(chunk_bytes, num_bytes - offset));
    end_turn();
  }
}

std::vector<const std::byte*> ShmGroup::parts_of_slots(std::int64_t offset) const {
  std::vector<const std::byte*> parts;
  for (int r = 0; r < size(); ++r) parts.push_back(slot(r) + offset);
  return parts;
}

void ShmGroup::require_flat(const char* operation, const at::Tensor& x) const {
  if (x.is_contiguous() && (x.is_cpu() || x.is_cuda())) return;
  throw InternalError(
      "{} in group {}: got a tensor that is not contiguous or on {}, want a contiguous one on cpu or cuda", operation,
      name(), x.device().str());
}

void ShmGroup::require_parts(const char* operation, const at::Tensor& whole, const at::Tensor& part) const {
  require_flat(operation, whole);
  require_flat(operation, part);
  if (whole.numel() == part.numel() * size() && whole.scalar_type() == part.scalar_type()) return;
  throw InternalError("{} in group {}: got {} elements of {} and {} of {}, want {} equal parts of one type", operation,
                      name(), whole.numel(), at::toString(whole.scalar_type()), part.numel(),
                      at::toString(part.scalar_type()), size());
}

Work ShmGroup::all_reduce(const at::Tensor& x, Reduce op) {
  require_flat("all_reduce", x);
  require_reducible(x.scalar_type());
  const OperationScope scope(watch_, *this, "all_reduce");
  Window window(x, staging_);
  const auto element_bytes = static_cast<std::int64_t>(x.element_size());
  begin_collective({Kind::kAllReduce, static_cast<std::uint32_t>(op), static_cast<std::int64_t>(x.scalar_type()),
                    window.num_bytes()});
  // Part p of a chunk is summed by rank p, into its own slot: nobody else reads part p of any slot before the second
  // meeting.
  const auto part_begin = [&](std::int64_t count, int p) { return count / element_bytes * p / size() * element_bytes; };
  alignas(kLine) std::array<std::byte, kSumByAllBytes> sums;
  for_each_chunk(window.num_bytes(), kHalfBytes, [&](std::int64_t offset, std::int64_t count) {
    window.read(slot(rank()), offset, count);
    meet_and_check();
    if (count <= kSumByAllBytes) {
      reduce_in_order(op, x.scalar_type(), parts_of_slots(0), sums.data(), count / element_bytes);
      window.write(sums.data(), offset, count);
      return;
    }
    const std::int64_t begin = part_begin(count, rank());
    const std::int64_t num_elements = (part_begin(count, rank() + 1) - begin) / element_bytes;
    reduce_in_order(op, x.scalar_type(), parts_of_slots(begin), slot(rank()) + begin, num_elements);
    meet();
    for (int p = 0; p < size(); ++p) {
      const std::int64_t from = part_begin(count, p);
      window.write(slot(p) + from, offset + from, part_begin(count, p + 1) - from);
    }
  });
  return {};
}

Work ShmGroup::all_gather(const at::Tensor& out, const at::Tensor& in) {
  require_parts("all_gather", out, in);
  const OperationScope scope(watch_, *this, "all_gather");
  Window to(out, staging_), from(in, staging_);
  const std::int64_t part_bytes = from.num_bytes();
  begin_collective({Kind::kAllGather, 0, static_cast<std::int64_t>(in.scalar_type()), part_bytes});
  for_each_chunk(part_bytes, kHalfBytes, [&](std::int64_t offset, std::int64_t count) {
    from.read(slot(rank()), offset, count);
    meet_and_check();
    for (int r = 0; r < size(); ++r) to.write(slot(r), r * part_bytes + offset, count);
  });
  return {};
}

Work ShmGroup::reduce_scatter(const at::Tensor& out, const at::Tensor& in) {
  require_parts("reduce_scatter", in, out);
  require_reducible(in.scalar_type());
  const OperationScope scope(watch_, *this, "reduce_scatter");
  Window to(out, staging_), from(in, staging_);
  const std::int64_t part_bytes = to.num_bytes();
  const auto element_bytes = static_cast<std::int64_t>(in.element_size());
  begin_collective({Kind::kReduceScatter, 0, static_cast<std::int64_t>(in.scalar_type()), part_bytes});
  for_each_chunk(part_bytes, part_chunk_bytes(), [&](std::int64_t offset, std::int64_t count) {
    for (int p = 0; p < size(); ++p) from.read(slot(rank()) + p * part_chunk_bytes(), p * part_bytes + offset, count);
    meet_and_check();
    // Into my own slot: nobody else reads this part of it.
    const std::int64_t mine = rank() * part_chunk_bytes();
    reduce_in_order(Reduce::kSum, in.scalar_type(), parts_of_slots(mine), slot(rank()) + mine, count / element_bytes);
    to.write(slot(rank()) + mine, offset, count);
  });
  return {};
}

Work ShmGroup::all_to_all(const at::Tensor& out, const at::Tensor& in) {
  require_flat("all_to_all", out);
  require_flat("all_to_all", in);
  if (out.numel() != in.numel() || out.scalar_type() != in.scalar_type() || in.numel() % size() != 0) {
    throw InternalError("all_to_all in group {}: got {} and {} elements, want as many of one type, a multiple of {}",
                        name(), out.numel(), in.numel(), size());
  }
  const OperationScope scope(watch_, *this, "all_to_all");
  Window to(out, staging_), from(in, staging_);
  const std::int64_t part_bytes = from.num_bytes() / size();
  begin_collective({Kind::kAllToAll, 0, static_cast<std::int64_t>(in.scalar_type()), part_bytes});
  for_each_chunk(part_bytes, part_chunk_bytes(), [&](std::int64_t offset, std::int64_t count) {
    for (int p = 0; p < size(); ++p) from.read(slot(rank()) + p * part_chunk_bytes(), p * part_bytes + offset, count);
    meet_and_check();
    for (int p = 0; p < size(); ++p) to.write(slot(p) + rank() * part_chunk_bytes(), p * part_bytes + offset, count);
  });
  return {};
}

Work ShmGroup::broadcast(const at::Tensor& x, int root) {
  require_flat("broadcast", x);
  if (root < 0 || root >= size()) {
    throw InternalError("broadcast in group {}: got root {}, want 0 to {}", name(), root, size() - 1);
  }
  const OperationScope scope(watch_, *this, "broadcast");
  Window window(x, staging_);
  begin_collective({Kind::kBroadcast, static_cast<std::uint32_t>(root), static_cast<std::int64_t>(x.scalar_type()),
                    window.num_bytes()});
  // The root has all slots to itself.
  for_each_chunk(window.num_bytes(), kHalfBytes * size(), [&](std::int64_t offset, std::int64_t count) {
    if (rank() == root) window.read(slot(0), offset, count);
    meet_and_check();
    if (rank() != root) window.write(slot(0), offset, count);
  });
  return {};
}

void ShmGroup::require_peer(const Transfer& transfer) const {
  require_flat("exchange", transfer.tensor);
  if (transfer.peer < 0 || transfer.peer >= size() || transfer.peer == rank()) {
    throw InternalError("exchange in group {}: rank {} got peer {}, want another of its {} ranks", name(), rank(),
                        transfer.peer, size());
  }
}

Work ShmGroup::exchange(const std::vector<Transfer>& sends, const std::vector<Transfer>& receives) {
  std::vector<int> peers;
  for (const auto* transfers : {&sends, &receives}) {
    for (const Transfer& transfer : *transfers) {
      require_peer(transfer);
      peers.push_back(transfer.peer);
    }
  }
  if (peers.empty()) return {};
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  const OperationScope scope(watch_, *this, "exchange", peers);
  mailboxes_.exchange(name(), sends, receives, staging_);
  return {};
}

void ShmGroup::barrier() {
  const OperationScope scope(watch_, *this, "barrier");
  begin_collective({.kind = Kind::kBarrier});
  meet_and_check();
  end_turn();
}

}  // namespace

GroupPtr make_shm_group(const GroupRequest& request) {
  const int num_ranks = static_cast<int>(request.ranks.size());
  if (num_ranks > kMaxRanks) {
    throw ConfigError("group {}: got {} ranks, want at most {} (dist.distributed_backend=shm)", request.name, num_ranks,
                      kMaxRanks);
  }
  const std::size_t num_bytes = Layout(num_ranks).total;
  std::optional<ShmSegment> segment;
  if (request.rank == 0) segment.emplace(ShmSegment::create(num_bytes));
  const std::string address = request.share(segment ? segment->address() : std::string());
  if (!segment) segment.emplace(ShmSegment::open(address, num_bytes));
  auto group = std::make_shared<ShmGroup>(request, std::move(*segment));
  group->start();
  return group;
}

}  // namespace dfm::comm
