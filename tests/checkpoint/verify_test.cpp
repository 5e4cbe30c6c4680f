// Iterations that are cut, flipped, mixed up or incomplete.
#include <gtest/gtest.h>

#include "checkpoint/iterations.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFiles[] = {"model_weights.pt", "optimizer_states.pt", "extra_state.pt"};

void overwrite(const fs::path& path, std::string_view content) {
  File(path, File::Mode::kCreate).write(as_bytes(content));
}

TEST(VerifyIteration, WholeOnePasses) {
  const test::TempFolder temp;
  const IterationFolder saved = test::save_small_iteration(temp.path(), 7, 1.5);
  verify_iteration(saved.path);
  verify_iteration(temp / "iter_7");
  verify_iteration_data(saved.path, *comm::World::solo());
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "does not exist", (verify_iteration(temp / "iter_8"), 0));
}

TEST(VerifyIteration, MissingFileIsNamed) {
  const test::TempFolder temp;
  const fs::path folder = test::save_small_iteration(temp.path(), 7, 1.5).path;
  for (const char* name : {"model_weights.pt", "optimizer_states.pt", "extra_state.pt", "run_config.yaml"}) {
    fs::rename(folder / name, temp / "away");
    EXPECT_DFM_ERROR(ExitCode::kCheckpoint, std::string("got no file ") + name, (verify_iteration(folder), 0));
    fs::rename(temp / "away", folder / name);
  }
  verify_iteration(folder);
}

TEST(VerifyIteration, CutFileIsNamedWhereverItEnds) {
  const test::TempFolder temp;
  const fs::path folder = test::save_small_iteration(temp.path(), 7, 1.5).path;
  for (const char* name : kFiles) {
    const std::string content = read_text_file(folder / name);
    for (std::size_t size = 0; size < content.size(); size += 7) {
      overwrite(folder / name, std::string_view(content).substr(0, size));
      EXPECT_DFM_ERROR(ExitCode::kCheckpoint, name, (verify_iteration(folder), 0));
    }
    overwrite(folder / name, content);
  }
  verify_iteration(folder);
}

// One bit anywhere: it is found and the file named, or nothing that is read has changed.
TEST(VerifyIteration, FlippedBitIsFoundOrChangesNothing) {
  const test::TempFolder temp;
  const fs::path folder = test::save_small_iteration(temp.path(), 7, 1.5).path;
  const auto world = comm::World::solo();
  for (const char* name : kFiles) {
    const std::string content = read_text_file(folder / name);
    const TensorFile intact(folder / name);
    const NamedTensors tensors = intact.read_all();
    int num_found = 0, num_flips = 0;
    for (std::size_t place = 0; place < content.size(); place += 3, ++num_flips) {
      std::string damaged = content;
      damaged[place] = static_cast<char>(damaged[place] ^ (1 << (place % 8)));
      overwrite(folder / name, damaged);
      SCOPED_TRACE(fmt::format("{}, byte {}", name, place));
      try {
        verify_iteration_data(folder, *world);
        const TensorFile file(folder / name);
        EXPECT_EQ(file.scalars(), intact.scalars());
        for (const auto& [tensor, value] : tensors) EXPECT_TRUE(file.read(tensor).equal(value));
      } catch (const Error& error) {
        ++num_found;
        EXPECT_EQ(error.code(), ExitCode::kCheckpoint) << error.what();
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      }
    }
    EXPECT_GT(num_found, num_flips / 3) << name;
    overwrite(folder / name, content);
  }
  verify_iteration_data(folder, *world);
}

TEST(VerifyIteration, FilesOfTwoSavesDoNotMix) {
  const test::TempFolder temp;
  const fs::path a = test::save_small_iteration(temp.path(), 7, 1.5).path;
  const fs::path b = test::save_small_iteration(temp.path(), 8, 2.5).path;
  for (const char* name : kFiles) {
    fs::copy_file(a / name, temp / "away");
    fs::copy_file(b / name, a / name, fs::copy_options::overwrite_existing);
    EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "iter_0000007", (verify_iteration(a), 0));
    fs::remove(a / name);
    fs::rename(temp / "away", a / name);
  }
  verify_iteration(a);
  fs::rename(b, temp / "iter_0000009");  // all three, under another number
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "got iteration 8, want 9", (verify_iteration(temp / "iter_0000009"), 0));
}

TEST(NewestWholeIteration, PassesOverDamagedOnesAndSaysWhy) {
  const test::TempFolder temp;
  const auto world = comm::World::solo();
  EXPECT_FALSE(newest_whole_iteration(temp / "new", *world).found.has_value());
  for (const std::int64_t iteration : {1, 2, 3, 4}) test::save_small_iteration(temp.path(), iteration, 1.5);
  fs::create_directory(temp / "iter_0000005.tmp");
  EXPECT_EQ(newest_whole_iteration(temp.path(), *world).found->iteration, 4);
  fs::remove(temp / "iter_0000004" / "optimizer_states.pt");
  std::string content = read_text_file(temp / "iter_0000003" / "model_weights.pt");
  const std::size_t value = content.find(std::string("\0\0\xc0\x3f", 4));  // 1.5, in the data
  ASSERT_NE(value, std::string::npos);
  content[value] = 1;
  overwrite(temp / "iter_0000003" / "model_weights.pt", content);
  const WholeIteration result = newest_whole_iteration(temp.path(), *world);
  EXPECT_EQ(result.found->iteration, 2);
  EXPECT_EQ(result.found->path, temp / "iter_0000002");
  ASSERT_EQ(result.refused.size(), 2U);
  EXPECT_NE(result.refused[0].find("iter_0000004: got no file optimizer_states.pt"), std::string::npos);
  EXPECT_NE(result.refused[1].find("iter_0000003/model_weights.pt: tensor layer.weight"), std::string::npos);
  for (const char* name : {"iter_0000001", "iter_0000002"}) fs::remove(temp / name / "extra_state.pt");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "no iteration that is whole of 4",
                   newest_whole_iteration(temp.path(), *world));
}

}  // namespace
}  // namespace dfm::checkpoint
