#include "dfm/data/dataset.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/index.h"
#include "data/small_dataset.h"
#include "dfm/base/file.h"
#include "dfm/formats/nv_meta.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

void expect_samples(const Dataset& dataset, std::int64_t count) {
  ASSERT_EQ(static_cast<std::int64_t>(dataset.entries().size()), count);
  for (std::int64_t i = 0; i < count; ++i) {
    const Sample sample = dataset.read(static_cast<std::size_t>(i));
    EXPECT_EQ(dataset.entries()[static_cast<std::size_t>(i)].key, sample_key(static_cast<std::uint64_t>(i)));
    EXPECT_EQ(sample.problem, "");
    EXPECT_TRUE(at::equal(sample.latent_CTHW.to(at::kFloat), test::small_latent(i)));
    EXPECT_TRUE(at::equal(sample.text_LE.to(at::kFloat), test::small_text(i)));
    EXPECT_EQ(sample.caption, "caption " + std::to_string(i));
    EXPECT_EQ(sample.fps, i % 3 == 0 ? 12 : 30);
  }
}

// Changes one byte of a file.
void flip(const fs::path& path, std::uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ 0x10));
}

struct RawSample {
  std::string key;
  at::Tensor pth, pickle;
  std::string json = R"({"image_height": 1, "image_width": 32})";
};

// A shard as other software may write it.
void write_raw_shard(const fs::path& path, const std::vector<RawSample>& samples) {
  formats::TarWriter tar(path);
  for (const RawSample& sample : samples) {
    tar.add(sample.key + ".json", as_bytes(sample.json));
    tar.add(sample.key + ".pickle", as_bytes(formats::pickle_tensor(sample.pickle)));
    tar.add(sample.key + ".pth", as_bytes(formats::torch_save_tensor(sample.pth)));
  }
  tar.close();
}

RawSample raw_sample(const std::string& key) {
  at::Tensor text = at::zeros({1, 512, 8}, at::kBFloat16);
  text[0].slice(0, 0, 3).fill_(2);
  return {key, at::ones({1, 16, 1, 4, 4}, at::kBFloat16), text};
}

TEST(Dataset, ReadsBackWhatWasWritten) {
  const test::TempFolder folder;
  const auto shards = test::write_small_dataset(folder.path(), 7, 3);
  EXPECT_EQ(shards, (std::vector<std::string>{"rank0-000000.tar", "rank0-000001.tar", "rank0-000002.tar"}));
  const auto dataset = Dataset::open(folder.path());
  expect_samples(*dataset, 7);
  EXPECT_EQ(dataset->card().text_width, test::kTextWidth);
}

TEST(Dataset, IsTheSameFromTheTarsAlone) {
  const test::TempFolder with, without;
  test::write_small_dataset(with.path(), 7, 3);
  test::write_small_dataset(without.path(), 7, 4, false);
  const auto dataset = Dataset::open(without.path());
  expect_samples(*dataset, 7);
  EXPECT_TRUE(fs::exists(without / "dfm-index.bin"));
  EXPECT_EQ(dataset->fingerprint(), Dataset::open(with.path())->fingerprint());
  EXPECT_EQ(dataset->card().num_clips, 3);
  EXPECT_EQ(dataset->card().fps, 12);
  EXPECT_EQ(dataset->card().text_encoder, "unknown");
  // The index that a scan makes is the one that the writer makes.
  fs::remove(with / "dfm-index.bin");
  expect_samples(*Dataset::open(with.path()), 7);
}

TEST(Dataset, IndexOfAScanEqualsTheWriters) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 7, 3);
  const std::string written = read_text_file(folder / "dfm-index.bin");
  fs::remove(folder / "dfm-index.bin");
  Dataset::open(folder.path());
  EXPECT_EQ(read_text_file(folder / "dfm-index.bin"), written);
}

TEST(Dataset, RebuildsAnIndexThatDoesNotFit) {
  const test::TempFolder folder, other;
  test::write_small_dataset(folder.path(), 6, 3);
  const std::string written = read_text_file(folder / "dfm-index.bin");
  // Damaged.
  flip(folder / "dfm-index.bin", 100);
  expect_samples(*Dataset::open(folder.path()), 6);
  EXPECT_EQ(read_text_file(folder / "dfm-index.bin"), written);
  // A shard of the same size with other samples: 5, 4, 3 in place of 3, 4, 5.
  ShardWriter writer(other.path(), {});
  for (const std::int64_t i : {5, 4, 3}) writer.add(test::small_parts(i));
  writer.close_shard();
  ASSERT_EQ(fs::file_size(other / "rank0-000000.tar"), fs::file_size(folder / "rank0-000001.tar"));
  fs::copy_file(other / "rank0-000000.tar", folder / "rank0-000001.tar", fs::copy_options::overwrite_existing);
  expect_samples(*Dataset::open(folder.path()), 6);
}

TEST(Dataset, KeepsTheIndexOfAReadOnlyFolderInTheCache) {
  const test::TempFolder cache, home;
  test::write_small_dataset(home / "set", 4, 3, false);
  // A folder where the index's place is taken cannot be written, not even by root.
  fs::create_directory(home.path() / "set" / "dfm-index.bin");
  ASSERT_EQ(setenv("XDG_CACHE_HOME", cache.path().c_str(), 1), 0);
  expect_samples(*Dataset::open(home / "set"), 4);
  ASSERT_TRUE(fs::exists(cache / "dfm"));
  const fs::path index = fs::directory_iterator(cache / "dfm")->path();
  const auto written = fs::last_write_time(index);
  expect_samples(*Dataset::open(home / "set"), 4);
  EXPECT_EQ(fs::last_write_time(index), written);
  ASSERT_EQ(unsetenv("XDG_CACHE_HOME"), 0);
}

TEST(Dataset, FollowsTheSplits) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 9, 3);
  formats::NvMeta meta = *formats::read_nv_meta(folder.path());
  meta.splits = {{"train", {"rank0-000000.tar", "rank0-000002.tar"}}, {"val", {"rank0-000001.tar"}}, {"test", {}}};
  formats::write_nv_meta(folder.path(), meta);
  const auto train = Dataset::open(folder.path());
  ASSERT_EQ(train->entries().size(), 6U);
  EXPECT_EQ(train->entries()[3].key, "000006");
  const auto val = Dataset::open(folder.path(), "val");
  ASSERT_EQ(val->entries().size(), 3U);
  EXPECT_EQ(val->read(0).caption, "caption 3");
  EXPECT_NE(val->fingerprint(), train->fingerprint());
  EXPECT_DFM_ERROR(ExitCode::kData, "no shard in split test", Dataset::open(folder.path(), "test"));
  meta.splits["val"] = {"rank0-000009.tar"};
  formats::write_nv_meta(folder.path(), meta);
  EXPECT_DFM_ERROR(ExitCode::kData, "rank0-000009.tar: got no such shard", Dataset::open(folder.path(), "val"));
}

TEST(Dataset, RefusesFoldersThatAreNone) {
  const test::TempFolder folder;
  EXPECT_DFM_ERROR(ExitCode::kData, "got no such folder", Dataset::open(folder / "absent"));
  EXPECT_DFM_ERROR(ExitCode::kData, "without shards", Dataset::open(folder.path()));
  fs::create_directory(folder / ".dfm_prepare");
  EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", Dataset::open(folder.path()));
  fs::remove(folder / ".dfm_prepare");
  std::ofstream(folder / "a.tar.gz") << "x";
  EXPECT_DFM_ERROR(ExitCode::kData, "compressed shard", Dataset::open(folder.path()));
}

TEST(Dataset, NoticesAMissingShard) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 6, 3);
  fs::remove(folder / "rank0-000001.tar");
  EXPECT_DFM_ERROR(ExitCode::kData, "got 3 samples, want 6", Dataset::open(folder.path()));
}

TEST(Dataset, RefusesAKeyInTwoShards) {
  const test::TempFolder folder;
  write_raw_shard(folder / "a.tar", {raw_sample("000001")});
  write_raw_shard(folder / "b.tar", {raw_sample("000000"), raw_sample("000001")});
  EXPECT_DFM_ERROR(ExitCode::kData, "sample 000001 in a.tar and in b.tar", Dataset::open(folder.path()));
}

TEST(Dataset, RefusesSamplesWithoutTheParts) {
  const test::TempFolder folder;
  formats::TarWriter tar(folder / "a.tar");
  tar.add("000000.jpg", as_bytes("x"));
  tar.add("000000.json", as_bytes("{}"));
  tar.close();
  EXPECT_DFM_ERROR(ExitCode::kData, "sample 000000 without .pth", Dataset::open(folder.path()));
}

TEST(Dataset, RefusesACutShard) {
  const test::TempFolder folder;
  const auto shards = test::write_small_dataset(folder.path(), 3, 3);
  fs::resize_file(folder / shards[0], fs::file_size(folder / shards[0]) / 2);
  EXPECT_DFM_ERROR(ExitCode::kData, shards[0], Dataset::open(folder.path()));
}

TEST(Dataset, NoticesAFlippedBitInEveryPart) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 9, 9);
  const auto dataset = Dataset::open(folder.path());
  const SampleEntry entry = dataset->entries()[3];  // not one that the index is compared with
  for (const SampleEntry::Part* part : {&entry.json, &entry.pickle, &entry.pth}) {
    flip(folder / "rank0-000000.tar", part->offset + part->size / 2);
    EXPECT_DFM_ERROR(ExitCode::kData, "another checksum", dataset->read(3));
    flip(folder / "rank0-000000.tar", part->offset + part->size / 2);
  }
  EXPECT_EQ(dataset->read(3).problem, "");
}

TEST(Dataset, GivesBadValuesAProblemAndKeepsTheSample) {
  const test::TempFolder folder;
  std::vector<RawSample> samples;
  for (int i = 0; i < 8; ++i) samples.push_back(raw_sample(sample_key(static_cast<std::uint64_t>(i))));
  samples[1].pth[0][0][0][0][0] = std::numeric_limits<double>::quiet_NaN();
  samples[2].pth[0][0][0][0][0] = -1008;
  samples[3].pth = at::ones({16, 4, 4}, at::kBFloat16);
  samples[4].pickle[0][1][1] = std::numeric_limits<double>::infinity();
  samples[5].pth = at::ones({1, 8, 1, 4, 4}, at::kBFloat16);
  samples[6].pickle = at::ones({1, 512, 4}, at::kBFloat16);
  samples[7].pth = at::full({16, 1, 4, 4}, 1000, at::kFloat);  // allowed: no leading 1, fp32, just at the limit
  write_raw_shard(folder / "a.tar", samples);
  const auto dataset = Dataset::open(folder.path());
  ASSERT_EQ(dataset->entries().size(), 8U);
  const std::vector<std::string> want = {
      "", "not finite", "size 1008, want at most 1000", "shape [16, 4, 4]", "not finite", "8 channels", "width 4", ""};
  for (std::size_t i = 0; i < want.size(); ++i) {
    const Sample sample = dataset->read(i);
    EXPECT_EQ(sample.problem.empty(), want[i].empty()) << sample.problem;
    EXPECT_NE(sample.problem.find(want[i]), std::string::npos) << sample.problem;
    EXPECT_EQ(sample.latent_CTHW.defined(), want[i].empty());
    if (!want[i].empty()) {
      EXPECT_NE(sample.problem.find(sample_key(i)), std::string::npos);
    }
  }
  EXPECT_EQ(dataset->read(7).latent_CTHW.scalar_type(), at::kBFloat16);
  EXPECT_EQ(dataset->read(0).text_LE.size(0), 3);
  EXPECT_EQ(dataset->read(0).fps, 30);
}

TEST(Dataset, ReportsDamagedPartsByName) {
  const test::TempFolder folder;
  const RawSample good = raw_sample("000000");
  const auto write = [&](const std::string& json, const std::string& pickle, const std::string& pth) {
    formats::TarWriter tar(folder / "a.tar");
    tar.add("000000.json", as_bytes(json));
    tar.add("000000.pickle", as_bytes(pickle));
    tar.add("000000.pth", as_bytes(pth));
    tar.close();
  };
  const std::string pickle = formats::pickle_tensor(good.pickle), pth = formats::torch_save_tensor(good.pth);
  write("[", pickle, pth);
  EXPECT_DFM_ERROR(ExitCode::kData, "000000.json", Dataset::open(folder.path()));
  write("{}", pickle.substr(0, pickle.size() / 2), pth);
  EXPECT_DFM_ERROR(ExitCode::kData, "000000.pickle", Dataset::open(folder.path()));
  write("{}", "cos\nsystem\n(S'true'\ntR.", pth);
  EXPECT_DFM_ERROR(ExitCode::kData, "000000.pickle", Dataset::open(folder.path()));
  write("{}", pickle, pth.substr(0, pth.size() - 30));
  EXPECT_DFM_ERROR(ExitCode::kData, "000000.pth", Dataset::open(folder.path()));
  write("{}", pickle, pth);
  EXPECT_EQ(Dataset::open(folder.path())->read(0).problem, "");
}

TEST(SampleParts, RefuseLatentsThatNoReaderTakes) {
  at::Tensor latent = test::small_latent(0);
  latent[0][0][0][0] = std::numeric_limits<double>::infinity();
  EXPECT_DFM_ERROR(ExitCode::kData, "not finite", make_sample_parts("000000", latent, test::small_text(0), {}));
}

TEST(Index, RefusesDamage) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 3, 3);
  const std::string good = read_text_file(folder / "dfm-index.bin");
  EXPECT_EQ(encode_index(decode_index(as_bytes(good), "x")), good);
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_THROW(decode_index(as_bytes(good.substr(0, size)), "x"), DataError) << size;
  }
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 1);
    EXPECT_THROW(decode_index(as_bytes(bad), "x"), DataError) << i;
  }
}

TEST(ShardWriter, RollsOverByCountAndBytes) {
  const test::TempFolder by_count, by_bytes;
  EXPECT_EQ(test::write_small_dataset(by_count.path(), 5, 2).size(), 3U);
  ShardWriter writer(by_bytes.path(), {.max_bytes = 1});
  for (int i = 0; i < 3; ++i) writer.add(test::small_parts(i));
  EXPECT_EQ(writer.shards().size(), 2U);
  EXPECT_TRUE(fs::exists(by_bytes / "rank0-000002.tar.tmp"));
  EXPECT_FALSE(fs::exists(by_bytes / "rank0-000002.tar"));
  writer.close_shard();
  EXPECT_FALSE(fs::exists(by_bytes / "rank0-000002.tar.tmp"));
  EXPECT_EQ(writer.shards().size(), 3U);
}

TEST(ShardWriter, OrdersPartsAndIndexesSamples) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 3, 3);
  const formats::TarListing listing = formats::read_tar_listing(folder / "rank0-000000.tar");
  std::vector<std::string> names;
  for (const auto& member : listing.members) names.push_back(member.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"000000.json", "000000.pickle", "000000.pth", "000001.json", "000001.pickle",
                                      "000001.pth", "000002.json", "000002.pickle", "000002.pth"}));
  const std::vector<std::uint64_t> want = {listing.members[0].header_offset, listing.members[3].header_offset,
                                           listing.members[6].header_offset, listing.end_offset};
  EXPECT_EQ(formats::read_tar_index(folder / "rank0-000000.tar.idx"), want);
  const auto meta = formats::read_nv_meta(folder.path());
  ASSERT_TRUE(meta);
  EXPECT_EQ(meta->splits.at("train"), (std::vector<std::string>{"rank0-000000.tar"}));
  EXPECT_TRUE(meta->splits.at("val").empty());
}

}  // namespace
}  // namespace dfm::data
