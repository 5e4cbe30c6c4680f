#pragma once
// The file `run.lock`: who writes into a run folder. Apart from RunLock so that tests can take flock away.
#include <filesystem>
#include <functional>
#include <string>

namespace dfm::checkpoint {

class LockFile {
 public:
  // flock(descriptor, LOCK_EX | LOCK_NB): 0 or an errno.
  using Flock = std::function<int(int descriptor)>;
  LockFile(const std::filesystem::path& run_folder, const Flock& flock);
  // Empties the file if it is still this one's: the folder is free.
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;
  void check_still_mine() const;

 private:
  void take();

  std::filesystem::path path_;
  std::string content_;
  int descriptor_ = -1;
};

}  // namespace dfm::checkpoint
