#pragma once
// A run folder: iter_NNNNNNN/ (model_weights.pt, optimizer_states.pt, extra_state.pt, run_config.yaml, model.pth ->
// weights) and latest_checkpointed_iteration.txt. iter_NNNNNNN.tmp/ is written, synced, then renamed: the final name
// means complete.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

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
// Calls `write` with the .tmp folder, syncs, renames, updates latest_checkpointed_iteration.txt. keep > 0: only the
// newest `keep` iterations stay.
IterationFolder save_iteration(const std::filesystem::path& run_folder, std::int64_t iteration, std::int64_t keep,
                               const std::function<void(const std::filesystem::path& folder)>& write);

}  // namespace dfm::checkpoint
