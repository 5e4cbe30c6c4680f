#include "checkpoint/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <random>
#include <sstream>

#include "checkpoint/errors.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/checkpoint/run_folder.h"

namespace dfm::checkpoint {
namespace {

namespace fs = std::filesystem;

struct Holder {
  std::string host;
  std::int64_t process = 0;
  std::string start;  // 2026-01-31T12:00:00Z
  std::string token;
};

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "unknown";
  return name.data();
}

std::string text_of(const Holder& holder) {
  return fmt::format("host {}\nprocess {}\nstart {}\ntoken {}\n", holder.host, holder.process, holder.start,
                     holder.token);
}

Holder this_process() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  std::array<char, 32> start{};
  std::strftime(start.data(), start.size(), "%Y-%m-%dT%H:%M:%SZ", &utc);
  std::random_device random;
  const auto half = [&] { return std::uint64_t{random()} << 32U | random(); };
  return {host_name(), ::getpid(), start.data(), fmt::format("{:016x}{:016x}", half(), half())};
}

// Nothing for an empty file: nobody holds it. What is unreadable is a holder without a name.
std::optional<Holder> parse_holder(const std::string& text) {
  if (text.empty()) return std::nullopt;
  Holder holder;
  std::istringstream lines(text);
  for (std::string key, value; lines >> key >> value;) {
    if (key == "host") holder.host = value;
    if (key == "start") holder.start = value;
    if (key == "token") holder.token = value;
    if (key == "process") std::from_chars(value.data(), value.data() + value.size(), holder.process);
  }
  return holder;
}

std::string describe(const Holder& holder) {
  if (holder.host.empty()) return "host, process and start unknown";
  return fmt::format("host {}, process {}, since {}", holder.host, holder.process, holder.start);
}

bool is_dead(const Holder& holder) {
  return holder.host == host_name() && holder.process > 0 && ::kill(static_cast<pid_t>(holder.process), 0) != 0 &&
         errno == ESRCH;
}

std::string read_small(int descriptor, const fs::path& path) {
  constexpr std::size_t kLargest = 4096;
  std::string text(kLargest, '\0');
  const ssize_t count = ::pread(descriptor, text.data(), text.size(), 0);
  if (count < 0) throw CheckpointError("{}: cannot read it: {}", path.string(), std::strerror(errno));
  text.resize(static_cast<std::size_t>(count));
  return text;
}

bool has_no_locks(int error) {
  return error == ENOLCK || error == ENOTSUP || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

}  // namespace

LockFile::LockFile(const fs::path& run_folder, const Flock& flock) : path_(run_folder / kRunLockName) {
  std::error_code error;
  fs::create_directories(run_folder, error);
  if (error == std::errc::no_space_on_device)
    throw ResourceError("run folder {}: cannot make it: {}; hint: free some space", run_folder.string(),
                        error.message());
  if (error) {
    throw CheckpointError("run folder {}: cannot make it: {}; hint: checkpoint.save names a folder that can be written",
                          run_folder.string(), error.message());
  }
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    if (errno == ENOSPC || errno == EDQUOT)
      throw ResourceError("{}: cannot create: {}; hint: free some space", path_.string(), std::strerror(errno));
    throw CheckpointError("{}: cannot create: {}, want a run folder that can be written", path_.string(),
                          std::strerror(errno));
  }
  try {
    const int refused = flock(descriptor_);
    const std::optional<Holder> holder = parse_holder(read_small(descriptor_, path_));
    const std::string in_use =
        fmt::format("run folder {}: got one that another job writes into ({}), want one job at a time",
                    run_folder.string(), describe(holder.value_or(Holder{})));
    if (has_no_locks(refused)) {
      // Only the token tells: the file of a job that was killed stays.
      if (holder && !is_dead(*holder))
        throw CheckpointError("{}; hint: if that job has ended, delete {}", in_use, path_.string());
    } else if (refused == EWOULDBLOCK) {
      throw CheckpointError("{}; hint: wait for it, or choose another checkpoint.save", in_use);
    } else if (refused != 0) {
      throw CheckpointError("{}: cannot lock: {}", path_.string(), std::strerror(refused));
    }
    take();
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

void LockFile::take() {
  content_ = text_of(this_process());
  const bool is_written =
      ::ftruncate(descriptor_, 0) == 0 &&
      ::pwrite(descriptor_, content_.data(), content_.size(), 0) == static_cast<ssize_t>(content_.size()) &&
      (::fsync(descriptor_) == 0 || errno == EINVAL);
  if (is_written) return;
  const int error = errno;
  static_cast<void>(::ftruncate(descriptor_, 0));
  if (error == ENOSPC || error == EDQUOT)
    throw ResourceError("{}: cannot write: {}; hint: free some space", path_.string(), std::strerror(error));
  throw CheckpointError("{}: cannot write: {}", path_.string(), std::strerror(error));
}

LockFile::~LockFile() {
  try {
    check_still_mine();
    static_cast<void>(::ftruncate(descriptor_, 0));
  } catch (const Error&) {
    // Another job's by now.
  }
  ::close(descriptor_);
}

// Opens the file anew: it may have been replaced, and network file systems then tell what is new.
void LockFile::check_still_mine() const {
  std::string text;
  try {
    text = read_text_file(path_);
  } catch (const Error& error) {
    throw CheckpointError(
        "{}: got no such file any more, want this job's ({}); hint: the run folder was removed or freed",
        path_.string(), error.what());
  }
  if (text == content_) return;
  throw CheckpointError("run folder {}: got one that another job has taken over ({}), want this job's",
                        path_.parent_path().string(), describe(parse_holder(text).value_or(Holder{})));
}

struct RunLock::State {
  explicit State(const fs::path& run_folder)
      : file(run_folder, [](int descriptor) { return ::flock(descriptor, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }) {}
  LockFile file;
};

RunLock::RunLock(const fs::path& run_folder) : state_(std::make_unique<State>(run_folder)) {}
RunLock::~RunLock() = default;
void RunLock::check_still_mine() const { state_->file.check_still_mine(); }

}  // namespace dfm::checkpoint
