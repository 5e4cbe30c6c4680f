#pragma once
// A run folder: iter_NNNNNNN/ (model_weights.pt, optimizer_states.pt, extra_state.pt, run_config.yaml, model.pth ->
// weights), latest_checkpointed_iteration.txt and run.lock. iter_NNNNNNN.tmp/ is written, synced, then renamed: the
// final name means complete.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dfm/comm/world.h"

namespace dfm::checkpoint {

struct IterationFolder {
  std::filesystem::path path;
  std::int64_t iteration = 0;
};

std::string iteration_name(std::int64_t iteration);  // "iter_0001000"
// Complete iterations in a run folder, oldest first.
std::vector<IterationFolder> complete_iterations(const std::filesystem::path& run_folder);
// What `checkpoint.load` or --checkpoint means: a run folder (its newest complete iteration), an iteration folder
// (`iter_5000` finds `iter_0005000`). CheckpointError when there is none.
IterationFolder resolve_iteration(const std::filesystem::path& path);
// Called by all ranks of `world`. Rank 0 makes the .tmp folder, every rank calls `write` with it (each syncs the files
// it writes), then rank 0 syncs the folder, renames it and updates latest_checkpointed_iteration.txt. keep > 0: only
// the newest `keep` iterations stay. On a failure of this rank the .tmp folder is removed and the error goes on.
IterationFolder save_iteration(const std::filesystem::path& run_folder, std::int64_t iteration, std::int64_t keep,
                               comm::World& world,
                               const std::function<void(const std::filesystem::path& folder)>& write);

// Is an iteration whole? Damage that a folder's name cannot show: files that are missing, cut, flipped or of another
// save.
//
// Cheap, by one process: every file is there, its index is readable and within the file, and the weights and the
// optimizer's state are those saved with extra_state.pt (where it tells), of the folder's iteration. CheckpointError
// that names the file.
void verify_iteration(const std::filesystem::path& folder);
// Called by all ranks of `world`, which share the work: the cheap check, then every block of all data. The same
// CheckpointError on every rank.
void verify_iteration_data(const std::filesystem::path& folder, comm::World& world);

// What automatic resume continues from, called by all ranks of `world`, the same answer on each: the newest iteration
// whose data are whole; none in a folder without iterations. CheckpointError when there are some and none is whole.
struct WholeIteration {
  std::optional<IterationFolder> found;
  std::vector<std::string> refused;  // a line for each newer one: what is wrong with it
};
WholeIteration newest_whole_iteration(const std::filesystem::path& run_folder, comm::World& world);

inline constexpr const char* kRunLockName = "run.lock";

// One job at a time writes into a run folder. Held by rank 0 from start to end: a flock where the file system has them,
// and a token in the file `run.lock` where it has not. Makes the folder. CheckpointError that names the holder's host,
// process and start.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& run_folder);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  // Before each save: CheckpointError when another job has taken the folder over.
  void check_still_mine() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::checkpoint
