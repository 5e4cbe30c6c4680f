// A data set that DFM's own software wrote, opened as a whole: with energon's metadata and without any.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "dfm/base/file.h"
#include "dfm/data/dataset.h"
#include "dfm/data/loader.h"
#include "dfm/formats/nv_meta.h"
#include "support/files.h"
#include "support/sha256.h"
#include "support/temp_folder.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

class WebdatasetGolden : public testing::Test {
 protected:
  void SetUp() override {
    const auto golden = test::golden_dir();
    if (!golden) GTEST_SKIP() << "DFM_GOLDEN_DIR is not set and shared/golden is not beside the source";
    folder_ = *golden / "webdataset";
    expected_ = nlohmann::json::parse(read_text_file(folder_ / "expected.json"));
    setenv("XDG_CACHE_HOME", temp_.path().c_str(), 1);
  }

  // The tars alone, as DFM's script leaves them.
  fs::path copy_tars() {
    const fs::path copy = temp_ / "copy";
    fs::create_directories(copy);
    for (const auto& entry : fs::directory_iterator(folder_ / "dataset")) {
      if (entry.path().extension() == ".tar") fs::copy_file(entry.path(), copy / entry.path().filename());
    }
    return copy;
  }

  [[nodiscard]] std::set<std::string> keys_in(const std::vector<std::string>& shards) const {
    std::set<std::string> keys;
    for (const auto& [key, sample] : expected_.items()) {
      if (std::find(shards.begin(), shards.end(), sample.at("shard")) != shards.end()) keys.insert(key);
    }
    return keys;
  }

  void expect_samples(const Dataset& dataset, const std::set<std::string>& keys) const {
    ASSERT_EQ(dataset.entries().size(), keys.size());
    ASSERT_FALSE(keys.empty());
    auto key = keys.begin();
    for (std::size_t i = 0; i < dataset.entries().size(); ++i, ++key) expect_sample(dataset, i, *key);
  }

  void expect_sample(const Dataset& dataset, std::size_t index, const std::string& key) const {
    SCOPED_TRACE(key);
    const SampleEntry& entry = dataset.entries()[index];
    const nlohmann::json& want = expected_.at(key);
    ASSERT_EQ(entry.key, key);
    EXPECT_EQ(entry.text_length, want.at("text_length").get<std::int64_t>());
    const Sample sample = dataset.read(index);
    ASSERT_EQ(sample.problem, "");
    EXPECT_EQ(sample.fps, want.at("json").value("fps", 30.0));
    const at::Tensor latent = sample.latent_CTHW.unsqueeze(0);
    EXPECT_EQ(latent.sizes().vec(), want.at("pth").at("shape").get<std::vector<std::int64_t>>());
    EXPECT_EQ(hash_of(latent), want.at("pth").at("sha256").get<std::string>());
    // The rows after the text are zero.
    const auto text_shape = want.at("pickle").at("shape").get<std::vector<std::int64_t>>();
    at::Tensor text = at::zeros(text_shape, at::kBFloat16);
    text[0].slice(0, 0, sample.text_LE.size(0)).copy_(sample.text_LE);
    EXPECT_EQ(hash_of(text), want.at("pickle").at("sha256").get<std::string>());
  }

  static std::string hash_of(const at::Tensor& tensor) {
    EXPECT_EQ(tensor.scalar_type(), at::kBFloat16);
    const at::Tensor whole = tensor.contiguous();
    return test::sha256({static_cast<const std::byte*>(whole.data_ptr()), whole.nbytes()});
  }

  test::TempFolder temp_;
  fs::path folder_;
  nlohmann::json expected_;
};

TEST_F(WebdatasetGolden, OpensWithEnergonsMetadata) {
  const auto meta = formats::read_nv_meta(folder_ / "dataset");
  ASSERT_TRUE(meta);
  const auto train = Dataset::open(folder_ / "dataset");
  expect_samples(*train, keys_in(meta->splits.at("train")));
  expect_samples(*Dataset::open(folder_ / "dataset", "val"), keys_in(meta->splits.at("val")));
  EXPECT_EQ(train->card().tokenizer, "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8");
  EXPECT_EQ(train->card().num_samples, static_cast<std::int64_t>(expected_.size()));
}

TEST_F(WebdatasetGolden, OpensWithEnergon7sMetadata) {
  const fs::path copy = copy_tars();
  fs::copy(folder_ / "nv-meta-energon7", copy / ".nv-meta");
  const auto train = Dataset::open(copy), want = Dataset::open(folder_ / "dataset");
  EXPECT_EQ(train->fingerprint(), want->fingerprint());
  EXPECT_EQ(train->entries().size(), want->entries().size());
}

TEST_F(WebdatasetGolden, OpensWithoutMetadata) {
  std::set<std::string> keys;
  for (const auto& [key, sample] : expected_.items()) keys.insert(key);
  const fs::path copy = copy_tars();
  expect_samples(*Dataset::open(copy), keys);
  EXPECT_TRUE(fs::exists(copy / "dfm-index.bin"));
  expect_samples(*Dataset::open(copy), keys);  // from the index
}

TEST_F(WebdatasetGolden, LoadsInSteps) {
  const auto dataset = Dataset::open(folder_ / "dataset");
  const auto count = static_cast<std::int64_t>(dataset->entries().size());
  StepLoader loader(dataset, {.limits = {.max_tokens = 512}, .global_batch_size = count});
  const LoadedStep step = loader.next();
  EXPECT_EQ(step.num_bad, 0);
  std::set<std::size_t> seen;
  for (const LoadedSample& loaded : step.samples) seen.insert(loaded.index);
  EXPECT_EQ(static_cast<std::int64_t>(seen.size()), count);
}

}  // namespace
}  // namespace dfm::data
