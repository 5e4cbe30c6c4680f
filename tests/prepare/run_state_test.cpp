#include "prepare/run_state.h"

#include <gtest/gtest.h>

#include <fstream>
#include <optional>

#include "dfm/data/shard_writer.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;

const Settings kSettings{{"a", "b"}};

// A shard of a stopped run, as far as its state goes: its record, and its name in the folder.
void add_shard(RunState& state, const fs::path& folder, std::int64_t rank, std::int64_t number,
               const std::vector<std::uint64_t>& items, const std::vector<std::uint64_t>& skipped = {}) {
  ShardRecord record;
  record.shard = data::ShardWriter::shard_name(rank, number);
  for (const std::uint64_t item : items) record.samples.emplace_back().key = data::sample_key(item);
  for (const std::uint64_t item : skipped) record.skipped.push_back({item, {"name", "reason"}});
  state.add(record);
  std::ofstream(folder / record.shard) << "samples";
  std::ofstream(folder / (record.shard + ".idx")) << "offsets";
}

TEST(RunState, ContinuesSeriesOfAnyNumberOfRanks) {
  const test::TempFolder folder;
  const fs::path out = folder / "out";
  {
    RunState first(out, kSettings);
    add_shard(first, out, 0, 0, {0, 5}, {3});
    RunState second(out, 1), eleventh(out, 10);
    add_shard(second, out, 1, 0, {1});
    add_shard(second, out, 1, 1, {7});
    add_shard(eleventh, out, 10, 0, {2, 9});
  }
  // Of a shard that did not come to be.
  std::ofstream(out / "rank1-000002.tar.tmp") << "half";
  std::ofstream(out / "rank1-000002.tar.idx") << "offsets";
  const RunState continued(out, kSettings);
  EXPECT_EQ(continued.records().size(), 4U);
  EXPECT_EQ(continued.done_items(11), (std::vector<char>{1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0}));
  EXPECT_EQ(continued.next_number(0), 1);
  EXPECT_EQ(continued.next_number(1), 2);
  EXPECT_EQ(continued.next_number(2), 0);
  EXPECT_EQ(continued.next_number(10), 1);
  EXPECT_FALSE(fs::exists(out / "rank1-000002.tar.tmp"));
  EXPECT_FALSE(fs::exists(out / "rank1-000002.tar.idx"));
  EXPECT_TRUE(fs::exists(out / "rank1-000001.tar.idx"));
  // The records say the same as when they were added.
  for (const ShardRecord& record : continued.records()) {
    if (record.shard != "rank0-000000.tar") continue;
    ASSERT_EQ(record.skipped.size(), 1U);
    EXPECT_EQ(record.skipped[0].item, 3U);
    EXPECT_EQ(record.skipped[0].skipped.reason, "reason");
  }
}

TEST(RunState, RefusesRecordsThatDoNotFitTheInput) {
  const test::TempFolder folder;
  const fs::path out = folder / "out";
  RunState state(out, kSettings);
  add_shard(state, out, 0, 0, {4});
  EXPECT_DFM_ERROR(ExitCode::kData, "rank0-000000.tar.json: got an item that is none of the input",
                   state.done_items(4));
  add_shard(state, out, 1, 0, {4});
  EXPECT_DFM_ERROR(ExitCode::kData, "rank1-000000.tar.json: got an item twice", state.done_items(5));
}

TEST(RunState, RefusesAFolderInWhichARankOfAnEarlierRunStillWrites) {
  const test::TempFolder folder;
  const fs::path out = folder / "out";
  std::optional<RunState> first(std::in_place, out, kSettings);
  EXPECT_DFM_ERROR(ExitCode::kData, "another `dfm prepare`", RunState(out, kSettings));
  RunState third(out, 2);
  EXPECT_DFM_ERROR(ExitCode::kData, "another `dfm prepare`", RunState(out, 2));
  first.reset();  // killed; the third rank has not noticed yet
  EXPECT_DFM_ERROR(ExitCode::kData, "another `dfm prepare`", RunState(out, kSettings));
  third.leave();
  EXPECT_NO_THROW(RunState(out, kSettings));
}

TEST(RunState, NamesARankThatDoesNotSeeTheFolder) {
  const test::TempFolder folder;
  EXPECT_DFM_ERROR(ExitCode::kData, "rank 3 does not see", RunState(folder / "elsewhere", 3));
}

}  // namespace
}  // namespace dfm::prepare
