#include "dfm/formats/nv_meta.h"

#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::formats {
namespace {

using Names = std::vector<std::string>;

TEST(Braces, ExpandAsTheShellDoes) {
  EXPECT_EQ(expand_braces("plain.tar"), Names{"plain.tar"});
  EXPECT_EQ(expand_braces("rank{0..2}.tar"), (Names{"rank0.tar", "rank1.tar", "rank2.tar"}));
  EXPECT_EQ(expand_braces("{008..011}"), (Names{"008", "009", "010", "011"}));
  EXPECT_EQ(expand_braces("{a,b}-{0..1}"), (Names{"a-0", "a-1", "b-0", "b-1"}));
  EXPECT_EQ(expand_braces("{a,x{0..1}}"), (Names{"a", "x0", "x1"}));
  EXPECT_EQ(expand_braces("{3..1}"), (Names{"3", "2", "1"}));
  EXPECT_EQ(expand_braces("{0..6..3}"), (Names{"0", "3", "6"}));
  EXPECT_EQ(expand_braces("{a..c}"), (Names{"a", "b", "c"}));
  EXPECT_EQ(expand_braces("{a,}"), (Names{"a", ""}));
  EXPECT_EQ(expand_braces("{x}"), Names{"{x}"});
  EXPECT_EQ(expand_braces("open{"), Names{"open{"});
}

TEST(Braces, TooManyNamesAreRefused) {
  EXPECT_DFM_ERROR(ExitCode::kData, "names", expand_braces("{0..99999999}"));
  EXPECT_DFM_ERROR(ExitCode::kData, "names", expand_braces("{0..9999}{0..9999}"));
  EXPECT_DFM_ERROR(ExitCode::kData, "bytes", expand_braces(std::string(5000, '{')));
}

TEST(NvMeta, RoundTrip) {
  const test::TempFolder temp;
  NvMeta meta;
  meta.shard_counts = {{"rank0-000000.tar", 13}, {"sub/rank1-000000.tar", 14}};
  meta.splits = {{"test", {}}, {"train", {"rank0-000000.tar"}}, {"val", {"sub/rank1-000000.tar"}}};
  meta.exclude = {"rank0-000000.tar/000003"};
  write_nv_meta(temp.path(), meta);
  const auto read = read_nv_meta(temp.path());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->shard_counts, meta.shard_counts);
  EXPECT_EQ(read->splits, meta.splits);
  EXPECT_EQ(read->exclude, meta.exclude);
  EXPECT_TRUE(read->excludes("rank0-000000.tar", "000003"));
  EXPECT_FALSE(read->excludes("rank0-000000.tar", "000004"));
  EXPECT_FALSE(read->excludes("rank0-000000.tar"));
  std::filesystem::remove(temp / ".nv-meta" / ".info.json");
  EXPECT_EQ(read_nv_meta(temp.path())->shard_counts, meta.shard_counts);  // of .info.yaml
}

TEST(NvMeta, FilesAreWhatEnergonWrites) {
  const test::TempFolder temp;
  NvMeta meta;
  meta.shard_counts = {{"rank0-000000.tar", 2}};
  meta.splits = {{"train", {"rank0-000000.tar"}}, {"val", {}}};
  write_nv_meta(temp.path(), meta);
  const auto text = [&](const char* name) { return read_text_file(temp.path() / ".nv-meta" / name); };
  EXPECT_EQ(text("dataset.yaml"), "__module__: megatron.energon\n__class__: CrudeWebdataset\n");
  EXPECT_EQ(text(".info.yaml"), "shard_counts:\n  rank0-000000.tar: 2\n");
  EXPECT_EQ(text("split.yaml"), "exclude: []\nsplit_parts:\n  train:\n  - rank0-000000.tar\n  val: []\n");
}

TEST(NvMeta, AbsentFolderIsNothingAndDamageIsNamed) {
  const test::TempFolder temp;
  EXPECT_FALSE(read_nv_meta(temp.path()));
  std::filesystem::create_directory(temp / ".nv-meta");
  const auto split = [&](const std::string& text) {
    write_file_atomically(temp.path() / ".nv-meta" / "split.yaml", text);
    return read_nv_meta(temp.path());
  };
  EXPECT_DFM_ERROR(ExitCode::kData, "split.yaml", split("split_parts: {train: ["));
  EXPECT_DFM_ERROR(ExitCode::kData, "split_parts", split("hello"));
  EXPECT_DFM_ERROR(ExitCode::kData, "inside the data set's folder", split("split_parts: {train: [../x.tar]}"));
  EXPECT_DFM_ERROR(ExitCode::kData, "inside the data set's folder", split("split_parts: {train: [/etc/x.tar]}"));
  EXPECT_DFM_ERROR(ExitCode::kData, "list of shards", split("split_parts: {train: x.tar}"));
  const auto braces = split("split_parts:\n  train:\n  - rank{0..1}-000000.tar\n  val:\n");
  ASSERT_TRUE(braces);
  EXPECT_EQ(braces->splits.at("train").size(), 2U);
  EXPECT_TRUE(braces->splits.at("val").empty());
  EXPECT_TRUE(braces->shard_counts.empty());
}

}  // namespace
}  // namespace dfm::formats
