// The data set that the original software wrote, read to the bit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "dfm/base/file.h"
#include "dfm/formats/nv_meta.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"
#include "support/files.h"
#include "support/sha256.h"

namespace dfm::formats {
namespace {

class WebdatasetGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto golden = test::golden_dir();
    if (!golden) GTEST_SKIP() << "set DFM_GOLDEN_DIR to a folder with webdataset/";
    folder_ = *golden / "webdataset";
    expected_ = nlohmann::json::parse(read_text_file(folder_ / "expected.json"));
    ASSERT_FALSE(expected_.empty());
  }

  std::vector<std::filesystem::path> shards() const {
    std::set<std::filesystem::path> names;
    for (const auto& [key, sample] : expected_.items()) {
      names.insert(folder_ / "dataset" / sample.at("shard").get<std::string>());
    }
    return {names.begin(), names.end()};
  }

  std::filesystem::path folder_;
  nlohmann::json expected_;
};

std::string read_member(const std::filesystem::path& shard, const TarMember& member) {
  std::string content(member.size, '\0');
  File(shard, File::Mode::kRead).read_at(member.data_offset, std::as_writable_bytes(std::span(content)));
  return content;
}

void expect_tensor(const at::Tensor& tensor, const nlohmann::json& want, const std::string& name) {
  EXPECT_EQ(tensor.sizes().vec(), want.at("shape").get<std::vector<std::int64_t>>()) << name;
  ASSERT_EQ(tensor.scalar_type(), at::kBFloat16) << name;
  ASSERT_TRUE(tensor.is_contiguous());
  const std::span bytes(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
  EXPECT_EQ(test::sha256(bytes), want.at("sha256").get<std::string>()) << name;
  const at::Tensor flat = tensor.flatten().to(at::kDouble);
  const auto first = want.at("first").get<std::vector<double>>();
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(flat[static_cast<std::int64_t>(i)].item<double>(), first[i]);
  EXPECT_NEAR(flat.sum().item<double>(), want.at("sum").get<double>(), 1e-9 * static_cast<double>(flat.numel()));
}

TEST(Sha256, KnowsTheStandardsVector) {
  EXPECT_EQ(test::sha256(as_bytes("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(WebdatasetGolden, EveryTensorIsReadToTheBit) {
  std::set<std::string> seen;
  for (const auto& shard : shards()) {
    for (const TarMember& member : list_tar(shard)) {
      const auto name = split_sample_name(member.name);
      ASSERT_TRUE(name) << member.name;
      const nlohmann::json& want = expected_.at(name->key);
      EXPECT_EQ(shard.filename(), want.at("shard").get<std::string>());
      const std::string content = read_member(shard, member);
      if (name->part == "pth") {
        expect_tensor(load_pth_tensor(as_bytes(content), member.name), want.at("pth"), member.name);
      } else if (name->part == "pickle") {
        expect_tensor(load_pickle_tensor(as_bytes(content), member.name), want.at("pickle"), member.name);
      } else {
        ASSERT_EQ(name->part, "json");
        EXPECT_EQ(nlohmann::json::parse(content), want.at("json"));
      }
      seen.insert(name->key + "." + name->part);
    }
  }
  EXPECT_EQ(seen.size(), 3 * expected_.size());
}

TEST_F(WebdatasetGolden, OffsetsEqualEnergonsIndex) {
  for (const auto& shard : shards()) {
    const TarListing listing = read_tar_listing(shard);
    std::vector<std::uint64_t> offsets;
    std::string key;
    for (const TarMember& member : listing.members) {
      const auto name = split_sample_name(member.name);
      ASSERT_TRUE(name);
      if (offsets.empty() || name->key != key) offsets.push_back(member.header_offset);
      key = name->key;
    }
    offsets.push_back(listing.end_offset);
    EXPECT_EQ(offsets, read_tar_index(shard.string() + ".idx")) << shard;
  }
}

TEST_F(WebdatasetGolden, MetadataOfBothEnergonsSayTheSame) {
  const auto six = read_nv_meta(folder_ / "dataset");
  ASSERT_TRUE(six);
  std::map<std::string, std::uint64_t> counts;
  for (const auto& [key, sample] : expected_.items()) ++counts[sample.at("shard").get<std::string>()];
  EXPECT_EQ(std::vector(counts.begin(), counts.end()), (std::vector<std::pair<const std::string, std::uint64_t>>(
                                                           six->shard_counts.begin(), six->shard_counts.end())));
  const auto copy = std::filesystem::temp_directory_path() / ("dfm_golden_meta_" + std::to_string(::getpid()));
  std::filesystem::remove_all(copy);
  std::filesystem::create_directories(copy);
  std::filesystem::copy(folder_ / "nv-meta-energon7", copy / ".nv-meta");
  const auto seven = read_nv_meta(copy);
  std::filesystem::remove_all(copy);
  ASSERT_TRUE(seven);
  EXPECT_EQ(six->shard_counts, seven->shard_counts);
  EXPECT_EQ(six->splits, seven->splits);
  EXPECT_EQ(six->exclude, seven->exclude);
}

}  // namespace
}  // namespace dfm::formats
