#include "dfm/checkpoint/run_folder.h"

#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::checkpoint {
namespace {

namespace fs = std::filesystem;

void write_note(const fs::path& folder, const std::string& text) { write_file_atomically(folder / "note", text); }

IterationFolder save(const fs::path& run, std::int64_t iteration, std::int64_t keep = -1,
                     const std::string& text = "x") {
  return save_iteration(run, iteration, keep, *comm::World::solo(),
                        [&](const fs::path& folder) { write_note(folder, text); });
}

TEST(RunFolder, SavedIterationIsCompleteAndNamedAsLatest) {
  const test::TempFolder temp;
  const fs::path run = temp / "run";
  const IterationFolder saved = save_iteration(run, 1000, -1, *comm::World::solo(), [&](const fs::path& folder) {
    EXPECT_EQ(folder.filename(), "iter_0001000.tmp");
    EXPECT_TRUE(complete_iterations(run).empty());
    write_note(folder, "hello");
  });
  EXPECT_EQ(saved.path.filename(), "iter_0001000");
  EXPECT_EQ(read_text_file(saved.path / "note"), "hello");
  EXPECT_EQ(read_text_file(run / "latest_checkpointed_iteration.txt"), "1000");
  EXPECT_FALSE(fs::exists(run / "iter_0001000.tmp"));
}

TEST(RunFolder, FailedSaveLeavesTheOlderIterationAndNoRest) {
  const test::TempFolder temp;
  save(temp.path(), 10);
  const auto broken = [](const fs::path& folder) {
    write_note(folder, "half");
    throw ResourceError("disk full");
  };
  EXPECT_DFM_ERROR(ExitCode::kResource, "disk full", save_iteration(temp.path(), 20, -1, *comm::World::solo(), broken));
  EXPECT_FALSE(fs::exists(temp / "iter_0000020.tmp"));
  EXPECT_EQ(resolve_iteration(temp.path()).iteration, 10);
  EXPECT_EQ(read_text_file(temp / "latest_checkpointed_iteration.txt"), "10");
}

TEST(RunFolder, UnfinishedFolderIsNeverTakenAndIsRemovedByTheNextSave) {
  const test::TempFolder temp;
  fs::create_directory(temp / "iter_0000030.tmp");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "no complete iteration", resolve_iteration(temp.path()));
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "never finished", resolve_iteration(temp / "iter_0000030.tmp"));
  save(temp.path(), 20);
  EXPECT_FALSE(fs::exists(temp / "iter_0000030.tmp"));
  EXPECT_EQ(resolve_iteration(temp.path()).iteration, 20);
}

TEST(RunFolder, SavingAnIterationAgainReplacesIt) {
  const test::TempFolder temp;
  save(temp.path(), 5, -1, "first");
  save(temp.path(), 5, -1, "second");
  EXPECT_EQ(read_text_file(temp / "iter_0000005" / "note"), "second");
  EXPECT_EQ(complete_iterations(temp.path()).size(), 1U);
  EXPECT_FALSE(fs::exists(temp / "iter_0000005.tmp"));
}

TEST(RunFolder, KeepsTheNewestAndTheOneJustSaved) {
  const test::TempFolder temp;
  for (const std::int64_t iteration : {1, 2, 3}) save(temp.path(), iteration);
  save(temp.path(), 4, 2);
  std::vector<std::int64_t> kept;
  for (const auto& found : complete_iterations(temp.path())) kept.push_back(found.iteration);
  EXPECT_EQ(kept, (std::vector<std::int64_t>{3, 4}));
  save(temp.path(), 2, 2);  // a run that went back
  EXPECT_EQ(resolve_iteration(temp / "iter_2").iteration, 2);
}

TEST(RunFolder, ResolvesRunFolderIterationFolderAndShortName) {
  const test::TempFolder temp;
  save(temp.path(), 5000);
  save(temp.path(), 12000000);
  EXPECT_EQ(resolve_iteration(temp.path()).iteration, 12000000);
  EXPECT_EQ(resolve_iteration(temp.path().string() + "/").iteration, 12000000);
  EXPECT_EQ(resolve_iteration(temp / "iter_5000").path.filename(), "iter_0005000");
  EXPECT_EQ(resolve_iteration(temp / "iter_0005000/").iteration, 5000);
  EXPECT_EQ(resolve_iteration(temp / "iter_12000000").iteration, 12000000);
}

TEST(RunFolder, MissingFolderNamesWhatIsThere) {
  const test::TempFolder temp;
  save(temp.path(), 7);
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "there is iter_0000007", resolve_iteration(temp / "iter_8"));
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "does not exist", resolve_iteration(temp / "nowhere" / "run"));
  write_note(temp.path(), "x");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "no complete iteration", resolve_iteration(temp / "note"));
}

}  // namespace
}  // namespace dfm::checkpoint
