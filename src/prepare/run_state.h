#pragma once
// What lets a stopped run continue: `<output>/.dfm_prepare/` with the run's settings and one record for each shard,
// written before the shard gets its final name. Gone when the data set is complete.
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dfm/data/card.h"
#include "dfm/data/dataset.h"
#include "dfm/prepare/prepare.h"

namespace dfm::prepare {

using Settings = std::map<std::string, std::string>;

struct ShardRecord {
  std::string shard;
  std::uint64_t next_item = 0;             // of the source: all before it are in this shard or an earlier one
  std::vector<Skipped> skipped;            // since the shard before
  std::int64_t num_without_caption = 0;    // among the shard's samples
  std::vector<data::SampleEntry> samples;  // `shard` is the number of the shard
};

// "short_side 256, now 512; fps 24, now each clip's own"; "" when they are equal.
std::string describe_differences(const Settings& before, const Settings& now);

// An advisory lock on a file, given up with the process at the latest.
class FolderLock {
 public:
  FolderLock() = default;
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;
  // False when another process holds it.
  bool take(const std::filesystem::path& path);

 private:
  int descriptor_ = -1;
};

class RunState {
 public:
  // Takes the folder for this process: creates it, or continues what a stopped run left there. ConfigError: other
  // settings. DataError: the folder holds something else, or another process is writing there.
  RunState(std::filesystem::path output_dir, const Settings& settings);
  RunState(const RunState&) = delete;
  RunState& operator=(const RunState&) = delete;

  // Of the shards that are complete, in order.
  [[nodiscard]] const std::vector<ShardRecord>& records() const { return records_; }
  // Durable when it returns.
  void add(ShardRecord record);
  void remove();

 private:
  void load_records();
  std::filesystem::path output_dir_, state_dir_;
  std::vector<ShardRecord> records_;
  FolderLock lock_;
};

}  // namespace dfm::prepare
