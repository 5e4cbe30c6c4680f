#pragma once
// What lets a stopped run continue, at any number of ranks: `<output>/.dfm_prepare/` with the run's settings and one
// record for each shard, written before the shard gets its final name. Gone when the data set is complete. Each file
// has one writer, is written beside its name and renamed, and is read by a name that the reader was told: no locks
// between ranks, and nothing for the caches of a network file system to get wrong.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dfm/data/card.h"
#include "dfm/data/dataset.h"
#include "dfm/prepare/prepare.h"
#include "prepare/settings.h"

namespace dfm::prepare {

// What the names of files start with that last no longer than a run.
inline constexpr const char* kRunPrefix = "run-";

struct SkippedItem {
  std::uint64_t item = 0;  // of the source
  Skipped skipped;
};

struct ShardRecord {
  std::string shard;
  std::vector<SkippedItem> skipped;        // by the shard's rank, since its shard before
  std::int64_t num_without_caption = 0;    // among the shard's samples
  std::vector<data::SampleEntry> samples;  // `shard` is not set
};

// An advisory lock on a file, given up with the process at the latest.
class FolderLock {
 public:
  FolderLock() = default;
  ~FolderLock() { give_up(); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  // False when another process holds it.
  bool take(const std::filesystem::path& path);
  void give_up();

 private:
  int descriptor_ = -1;
};

class RunState {
 public:
  // The first rank takes the folder for this run: creates it, or continues what a stopped run left there. ConfigError:
  // other settings. DataError: the folder holds something else, or a process of another run is writing there.
  RunState(std::filesystem::path output_dir, const Settings& settings);
  // Another rank joins, after the first has taken the folder.
  RunState(std::filesystem::path output_dir, std::int64_t rank);
  RunState(const RunState&) = delete;
  RunState& operator=(const RunState&) = delete;

  // Of complete shards: those that were there, on the first rank, and those that came since.
  [[nodiscard]] const std::vector<ShardRecord>& records() const { return records_; }
  // By item: 1 when it is in a complete shard, or skipped before one.
  [[nodiscard]] std::vector<char> done_items(std::size_t num_items) const;
  // The number after the last of rank's series.
  [[nodiscard]] std::int64_t next_number(std::int64_t rank) const;

  // A shard that this rank completes. Durable when it returns.
  void add(ShardRecord record);
  // A shard that another rank has completed.
  void load(const std::string& shard);
  // What all ranks have completed, after the last of them has ended.
  void reload();

  // What ranks tell each other through the folder, by names that are new in each run and start with kRunPrefix.
  void write(const std::string& name, std::string_view bytes) const;
  [[nodiscard]] std::string read(const std::string& name) const;
  [[nodiscard]] bool exists(const std::string& name) const;
  [[nodiscard]] std::filesystem::path path(const std::string& name) const { return state_dir_ / name; }

  // Another rank has written all that it will.
  void leave() { lock_.give_up(); }
  // The data set is complete.
  void remove();

 private:
  void load_all();
  void check_no_rank_is_writing() const;

  std::filesystem::path output_dir_, state_dir_;
  std::vector<ShardRecord> records_;
  FolderLock lock_;
};

}  // namespace dfm::prepare
