#include "dfm/base/file.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>

#include "dfm/base/error.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm {
namespace {

namespace fs = std::filesystem;

using test::error_of;

class FileTest : public testing::Test {
 protected:
  test::TempFolder temporary_;
  const fs::path& folder_ = temporary_.path();
};

TEST_F(FileTest, AtomicWriteLeavesOnlyTheFinalName) {
  const fs::path path = folder_ / "a.json";
  write_file_atomically(path, "first");
  write_file_atomically(path, "second");
  EXPECT_EQ(read_text_file(path), "second");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(FileTest, AtomicWriteKeepsTheOldFileWhenItCannotFinish) {
  const fs::path path = folder_ / "a.json";
  write_file_atomically(path, "first");
  fs::create_directories(folder_ / "a.json.tmp");  // the temporary name cannot be created
  EXPECT_THROW(write_file_atomically(path, "second"), DataError);
  EXPECT_EQ(read_text_file(path), "first");
}

// A reader never sees anything but one of the two contents.
TEST_F(FileTest, AtomicWriteIsWholeForAReaderBesideIt) {
  const fs::path path = folder_ / "a.txt";
  const std::string a(100000, 'a'), b(50000, 'b');
  write_file_atomically(path, a);
  std::thread writer([&] {
    for (int i = 0; i < 30; ++i) write_file_atomically(path, i % 2 == 0 ? b : a);
  });
  for (int i = 0; i < 100; ++i) {
    const std::string seen = read_text_file(path);
    EXPECT_TRUE(seen == a || seen == b) << seen.size();
  }
  writer.join();
}

TEST_F(FileTest, ReadsAndWritesAtOffsets) {
  File file(folder_ / "f.bin", File::Mode::kCreate);
  file.write(as_bytes("0123456789"));
  file.write_at(3, as_bytes("xyz"));
  EXPECT_EQ(file.size(), 10U);
  std::array<std::byte, 5> part{};
  file.read_at(2, part);
  EXPECT_EQ(as_text(part), "2xyz6");
  EXPECT_EQ(error_of([&] { file.read_at(7, part); }).substr(0, 2), "3 ");
  file.close();
  File more(folder_ / "f.bin", File::Mode::kAppend);
  more.write(as_bytes("!"));
  more.close();
  EXPECT_EQ(read_text_file(folder_ / "f.bin"), "012xyz6789!");
}

TEST_F(FileTest, ErrorsNameThePath) {
  const std::string missing = (folder_ / "none").string();
  EXPECT_NE(error_of([&] { read_text_file(missing); }).find("3 " + missing), std::string::npos);
  EXPECT_NE(error_of([&] { MappedFile map(missing); }).find("3 " + missing), std::string::npos);
  EXPECT_NE(error_of([&] { MappedFile map(folder_); }).find("want a file"), std::string::npos);
}

TEST_F(FileTest, MapsWholeFilesAndEmptyOnes) {
  write_file_atomically(folder_ / "some", "abc");
  write_file_atomically(folder_ / "empty", "");
  EXPECT_EQ(as_text(MappedFile(folder_ / "some").bytes()), "abc");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

TEST_F(FileTest, AFullDiskIsAResourceError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  File file("/dev/full", File::Mode::kAppend);
  EXPECT_EQ(error_of([&] { file.write(as_bytes("x")); }).substr(0, 2), "6 ");
}

TEST(NearestName, FindsTheMisspeltAndLeavesTheUnrelated) {
  const std::vector<std::string> names = {"num_layers", "hidden_size", "train_iters"};
  EXPECT_EQ(nearest_name("num_layer", names), "num_layers");
  EXPECT_EQ(nearest_name("hiden_sise", names), "hidden_size");
  EXPECT_EQ(nearest_name("trian_iters", names), "train_iters");
  EXPECT_EQ(nearest_name("colour", names), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

TEST(WithContext, PutsItInFrontAndKeepsTheCode) {
  const std::string message = error_of([] { with_context("shard 3", [] { throw CheckpointError("got {}", 7); }); });
  EXPECT_EQ(message, "4 shard 3: got 7");
}

}  // namespace
}  // namespace dfm
