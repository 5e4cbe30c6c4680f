#pragma once
// Memory that processes of one host share, and waiting in it. The memory has no name in /dev/shm: other processes reach
// it through the creator's /proc/<pid>/fd, so nothing is left behind however a process ends, and the size of /dev/shm
// (64 MiB in many containers) does not matter.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace dfm::comm {

class ShmSegment {
 public:
  // Zeroed, and all of it really there. ResourceError: no memory for it.
  static ShmSegment create(std::size_t num_bytes);
  // `address` is the creator's, which must be alive. CommError: it cannot be reached, or has another size.
  static ShmSegment open(const std::string& address, std::size_t num_bytes);
  ShmSegment(ShmSegment&& other) noexcept;
  ShmSegment& operator=(ShmSegment&&) = delete;
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;
  ~ShmSegment();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::string address() const;  // for open() in other processes
  // Once all have opened it. The memory stays until its last user is gone.
  void close_address();

 private:
  ShmSegment(int descriptor, std::byte* data, std::size_t num_bytes)
      : descriptor_(descriptor), data_(data), num_bytes_(num_bytes) {}

  int descriptor_ = -1;
  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
};

// A word in shared memory that one process changes and others wait for.
struct SharedWord {
  std::atomic<std::uint32_t> value;
  std::atomic<std::uint32_t> num_sleepers;

  [[nodiscard]] std::uint32_t load() const { return value.load(std::memory_order_acquire); }
  // After a change of `value` (memory order seq_cst).
  void wake_all();
  // Returns when `value` is no longer `old`. Looks `num_spins` times before it sleeps.
  void wait_while(std::uint32_t old, int num_spins);
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free);

}  // namespace dfm::comm
