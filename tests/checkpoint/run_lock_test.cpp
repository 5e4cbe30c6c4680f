#include "checkpoint/run_lock.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <optional>

#include "dfm/base/file.h"
#include "dfm/checkpoint/run_folder.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::checkpoint {
namespace {

int no_locks(int) { return ENOLCK; }

// A process id of this host that is nobody's.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::string holder(const std::string& host, pid_t process) {
  return fmt::format("host {}\nprocess {}\nstart 2026-01-02T03:04:05Z\ntoken 77\n", host, process);
}

TEST(RunLock, SecondJobIsRefusedAndToldWhoTheFirstIs) {
  const test::TempFolder temp;
  std::optional<RunLock> first(std::in_place, temp / "run");
  first->check_still_mine();
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, fmt::format("host {}, process {}, since ", host_name(), ::getpid()),
                   RunLock(temp / "run"));
  first->check_still_mine();
  first.reset();
  EXPECT_EQ(read_text_file(temp / "run" / "run.lock"), "");
  RunLock(temp / "run").check_still_mine();
}

TEST(RunLock, LockOfAKilledProcessIsFree) {
  const test::TempFolder temp;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock lock(temp.path());
    static_cast<void>(!::write(ready[1], "x", 1));
    for (;;) ::pause();
  }
  char x = 0;
  ASSERT_EQ(::read(ready[0], &x, 1), 1);
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, fmt::format("process {}", child), RunLock(temp.path()));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(read_text_file(temp / "run.lock").empty());
  RunLock(temp.path()).check_still_mine();
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(RunLock, HolderIsNoticedWhenAnotherJobTookOver) {
  const test::TempFolder temp;
  {
    const RunLock lock(temp.path());
    write_file_atomically(temp / "run.lock", holder("elsewhere", 12));
    EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "taken over (host elsewhere, process 12, since 2026-01-02",
                     (lock.check_still_mine(), 0));
  }
  EXPECT_EQ(read_text_file(temp / "run.lock"), holder("elsewhere", 12));  // left as it is
  const RunLock lock(temp.path());
  std::filesystem::remove(temp / "run.lock");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "run.lock: got no such file any more", (lock.check_still_mine(), 0));
}

TEST(RunLock, WithoutFlockTheTokenDecides) {
  const test::TempFolder temp;
  for (const int error : {ENOLCK, ENOTSUP, ENOSYS}) {
    const LockFile lock(temp.path(), [error](int) { return error; });
    lock.check_still_mine();
    EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "if that job has ended, delete " + (temp / "run.lock").string(),
                     LockFile(temp.path(), no_locks));
    lock.check_still_mine();
  }
  write_file_atomically(temp / "run.lock", holder("elsewhere", dead_process()));
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "host elsewhere", LockFile(temp.path(), no_locks));
  write_file_atomically(temp / "run.lock", "cut");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "unknown", LockFile(temp.path(), no_locks));
  write_file_atomically(temp / "run.lock", holder(host_name(), dead_process()));
  LockFile(temp.path(), no_locks).check_still_mine();
}

TEST(RunLock, FolderThatCannotBeMadeIsNamed) {
  const test::TempFolder temp;
  write_file_atomically(temp / "file", "x");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, (temp / "file" / "run").string(), RunLock(temp / "file" / "run"));
}

}  // namespace
}  // namespace dfm::checkpoint
