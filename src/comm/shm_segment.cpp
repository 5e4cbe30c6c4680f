#include "comm/shm_segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <system_error>
#include <utility>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

std::string describe_errno(int code) { return std::system_category().message(code); }

std::byte* map(int descriptor, std::size_t num_bytes) {
  void* data = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) {
    const std::string problem = describe_errno(errno);
    ::close(descriptor);
    throw ResourceError("shared memory between ranks: got '{}' for {} bytes, want memory (mmap)", problem, num_bytes);
  }
  return static_cast<std::byte*>(data);
}

// Not FUTEX_PRIVATE: the word is in the memory of several processes. The time limit is for nothing but safety.
void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t old) {
  const timespec limit{.tv_sec = 1, .tv_nsec = 0};
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT, old, &limit, nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) {
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ShmSegment ShmSegment::create(std::size_t num_bytes) {
  const int descriptor = ::memfd_create("dfm-group", MFD_CLOEXEC);
  if (descriptor < 0) {
    throw ResourceError("shared memory between ranks: got '{}', want a memory file (memfd_create)",
                        describe_errno(errno));
  }
  // Takes the pages now: without them the first write to a page would end the process with SIGBUS.
  if (const int code = ::posix_fallocate(descriptor, 0, static_cast<off_t>(num_bytes)); code != 0) {
    ::close(descriptor);
    throw ResourceError(
        "shared memory between ranks: got '{}', want {} bytes; hint: give the job more memory, or start fewer ranks",
        describe_errno(code), num_bytes);
  }
  return {descriptor, map(descriptor, num_bytes), num_bytes};
}

ShmSegment ShmSegment::open(const std::string& address, std::size_t num_bytes) {
  const int descriptor = ::open(address.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) {
    throw CommError(
        "shared memory between ranks, {}: got '{}', want the first rank's memory; hint: "
        "dist.distributed_backend=shm needs all ranks on one host, as one user, in one container",
        address, describe_errno(errno));
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || status.st_size != static_cast<off_t>(num_bytes)) {
    ::close(descriptor);
    throw CommError(
        "shared memory between ranks, {}: got {} bytes, want {}; hint: dist.distributed_backend=shm needs all ranks on "
        "one host, with the same dfm",
        address, status.st_size, num_bytes);
  }
  ShmSegment segment(descriptor, map(descriptor, num_bytes), num_bytes);
  segment.close_address();
  return segment;
}

ShmSegment::ShmSegment(ShmSegment&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(other.num_bytes_) {}

ShmSegment::~ShmSegment() {
  close_address();
  if (data_ != nullptr) ::munmap(data_, num_bytes_);
}

std::string ShmSegment::address() const { return fmt::format("/proc/{}/fd/{}", ::getpid(), descriptor_); }

void ShmSegment::close_address() {
  if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
}

// A waiter counts itself before the kernel looks at the word, a waker changes the word before it looks at the count:
// either the waker sees the sleeper, or the kernel sees the change.
void SharedWord::wake_all() {
  if (num_sleepers.load(std::memory_order_seq_cst) > 0) futex_wake_all(value);
}

void SharedWord::wait_while(std::uint32_t old, int num_spins) {
  for (int spin = 0; spin < num_spins; ++spin) {
    if (load() != old) return;
    pause_briefly();
  }
  num_sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (value.load(std::memory_order_seq_cst) == old) futex_wait(value, old);
  num_sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace dfm::comm
