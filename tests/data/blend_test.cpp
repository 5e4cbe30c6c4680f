#include "dfm/data/blend.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <numeric>
#include <set>

#include "data/small_dataset.h"
#include "dfm/base/file.h"
#include "dfm/base/philox.h"
#include "dfm/data/config.h"
#include "dfm/data/latent_scale.h"
#include "dfm/data/loader.h"
#include "dfm/data/plan.h"
#include "dfm/formats/metadataset.h"
#include "dfm/formats/nv_meta.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

TEST(BlendSlots, RoundByTheLargestRemainder) {
  EXPECT_EQ(blend_slots({1}), (std::vector<std::int64_t>{4096}));
  EXPECT_EQ(blend_slots({0.7, 0.3}), (std::vector<std::int64_t>{2867, 1229}));
  EXPECT_EQ(blend_slots({1, 1, 1}), (std::vector<std::int64_t>{1366, 1365, 1365}));
  EXPECT_EQ(blend_slots({2, 6}), (std::vector<std::int64_t>{1024, 3072}));
  const std::vector<std::int64_t> many = blend_slots({.1, .2, .3, 5, 1e-9, 7.25, .33, .001, 2});
  EXPECT_EQ(std::accumulate(many.begin(), many.end(), std::int64_t{0}), kBlendPeriod);
  EXPECT_EQ(many[4], 0);
  EXPECT_DFM_ERROR(ExitCode::kData, "got 0, want one above 0", blend_slots({1, 0}));
}

// The order written out anew: slots of the sets side by side, permuted; each set counts its own.
TEST(BlendOrder, GivesEachSetItsSlotsInEveryPeriodAndItsSamplesInOrder) {
  const std::vector<std::int64_t> slots = blend_slots({5, 3, 1.5});
  const BlendOrder order(slots);
  std::vector<std::uint64_t> seen(3);
  for (std::uint64_t position = 0; position < 3 * 4096; ++position) {
    const auto slot =
        static_cast<std::int64_t>(philox_permute(77, position / 4096, 4096, position % 4096, Purpose::kBlend));
    const std::size_t set = slot < slots[0] ? 0 : slot < slots[0] + slots[1] ? 1 : 2;
    const BlendDraw draw = order.at(77, position);
    ASSERT_EQ(draw.set, set) << position;
    ASSERT_EQ(draw.number, seen[set]++) << position;
    if ((position + 1) % 4096 == 0) {
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_EQ(seen[i], static_cast<std::uint64_t>(slots[i]) * ((position + 1) / 4096));
    }
  }
}

TEST(BlendOrder, IsAFunctionOfSeedAndPosition) {
  const BlendOrder forward(blend_slots({1, 2})), jumping(blend_slots({1, 2}));
  int differs = 0;
  for (std::uint64_t i = 0; i < 400; ++i) {
    const std::uint64_t position = (i * 7919 * 64) % 100000;  // over 24 periods, more than are kept
    const BlendDraw a = forward.at(5, position), b = jumping.at(5, position);
    EXPECT_EQ(a.set, b.set);
    EXPECT_EQ(a.number, b.number);
    differs += forward.at(6, position).set != a.set ? 1 : 0;
  }
  EXPECT_GT(differs, 50);
}

// docs/numerics.md prints this.
TEST(BlendOrder, FollowsTheTestVector) {
  const std::string text = read_text_file(fs::path(DFM_SOURCE_DIR) / "docs" / "numerics.md");
  const std::size_t first = text.find("| 1234 | 0.7 0.3 | ");
  ASSERT_NE(first, std::string::npos);
  const BlendOrder order(blend_slots({0.7, 0.3}));
  for (const std::uint64_t start : {0, 4096}) {
    std::string row = fmt::format("| 1234 | 0.7 0.3 | {} |", start);
    for (std::uint64_t i = 0; i < 10; ++i) {
      const BlendDraw draw = order.at(1234, start + i);
      row += fmt::format(" {}:{}", draw.set, draw.number);
    }
    EXPECT_NE(text.find(row + " |"), std::string::npos) << row;
  }
}

// Sets a (9 samples), b (4), c (5, of which 2 are val), and YAMLs beside them.
class Blends : public testing::Test {
 protected:
  void SetUp() override {
    test::write_small_dataset(folder_ / "a", 9, 4);
    test::write_small_dataset(folder_ / "b", 4, 4);
    test::write_small_dataset(folder_ / "c", 5, 3);
    formats::NvMeta meta = *formats::read_nv_meta(folder_ / "c");
    meta.splits = {{"train", {"rank0-000000.tar"}}, {"val", {"rank0-000001.tar"}}, {"test", {}}};
    formats::write_nv_meta(folder_ / "c", meta);
  }
  fs::path yaml(const std::string& name, const std::string& text) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  fs::path v2(const std::string& name, const std::string& splits) {
    return yaml(name, "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n" + splits);
  }
  // How often each set comes in a period.
  static std::map<std::string, int> counts(const Dataset& dataset, std::uint64_t length = 4096) {
    std::map<std::string, int> result;
    for (std::uint64_t i = 0; i < length; ++i) {
      const std::string& key = dataset.entries()[dataset.index_at(3, i)].key;
      ++result[key.substr(0, key.rfind('/'))];
    }
    return result;
  }
  using Counts = std::map<std::string, int>;
  test::TempFolder folder_;
};

TEST_F(Blends, FollowMetadatasetV1) {
  const auto blend =
      Dataset::open(yaml("v1.yaml",
                         "__module__: megatron.energon\n__class__: Metadataset\nsplits:\n  train:\n    datasets:\n"
                         "      - weight: 3\n        path: ./a\n        split_part: train\n        subflavors: {x: 1}\n"
                         "      - path: b\n        subflavor: y\n  val:\n    datasets: [{path: c}]\n"));
  EXPECT_EQ(blend->entries().size(), 13U);
  EXPECT_EQ(counts(*blend), (Counts{{"a", 3072}, {"b", 1024}}));
  EXPECT_EQ(blend->description(), "blend of 2 data sets: a 75%, b 25%");
  EXPECT_EQ(blend->read(10).caption, "caption 1");
  EXPECT_EQ(blend->entries()[10].key, "b/000001");
  EXPECT_EQ(blend->card().num_samples, 13);
  EXPECT_EQ(blend->card().fps, 12);
  const auto val = Dataset::open(folder_ / "v1.yaml", "val");  // one set: that set itself
  EXPECT_EQ(val->fingerprint(), Dataset::open(folder_ / "c", "val")->fingerprint());
  EXPECT_EQ(val->entries().size(), 2U);
}

TEST_F(Blends, GoThroughEachSetInItsOwnEpochs) {
  const auto blend = Dataset::open(v2("x.yaml", "  train: {blend: [{weight: 1, path: a}, {weight: 1, path: b}]}\n"));
  const auto a = Dataset::open(folder_ / "a"), b = Dataset::open(folder_ / "b");
  std::uint64_t seen_a = 0, seen_b = 0;
  for (std::uint64_t i = 0; i < 5000; ++i) {
    const std::size_t index = blend->index_at(11, i);
    const bool is_a = index < 9;
    const std::size_t want = is_a ? a->index_at(11, seen_a++) : 9 + b->index_at(11, seen_b++);
    ASSERT_EQ(index, want) << i;
    if (is_a) {
      EXPECT_EQ(index, sample_at(11, seen_a - 1, 9));
    }
  }
  EXPECT_NE(blend->fingerprint(), a->fingerprint());
}

TEST_F(Blends, MultiplyNestedWeightsAndAddUpEqualSets) {
  v2("deep/inner.yaml", "  train: {blend: [{weight: 2, path: ../a}, {weight: 6, path: ../b}]}\n  val: {path: ../c}\n");
  // a: 1/2 x 1/4 + 1/4, b: 1/2 x 3/4, c (its split val): 1/4
  const auto blend = Dataset::open(v2("outer.yaml",
                                      "  train:\n    blend:\n      - {weight: 10, path: deep/inner.yaml}\n"
                                      "      - {weight: 5, path: deep/inner.yaml, split_part: val}\n"
                                      "      - {weight: 5, path: a/}\n"));
  EXPECT_EQ(counts(*blend), (Counts{{"a", 1536}, {"b", 1536}, {"c:val", 1024}}));
  const auto through = Dataset::open(v2("through.yaml", "  train: {path: outer.yaml}\n"));
  EXPECT_EQ(through->fingerprint(), blend->fingerprint());
  // The weights are part of the fingerprint.
  const auto other = Dataset::open(v2("y.yaml", "  train: {blend: [{weight: 1, path: a}, {weight: 2, path: b}]}\n"));
  const auto equal = Dataset::open(v2("z.yaml", "  train: {blend: [{path: a}, {path: b}]}\n"));
  EXPECT_NE(other->fingerprint(), equal->fingerprint());
}

TEST_F(Blends, RepeatSamplesInAnEpochizedBlend) {
  const auto blend = Dataset::open(
      v2("e.yaml",
         "  train:\n    blend_epochized:\n      - {repetitions: 2, path: a}\n      - {repetitions: 1.5, path: b}\n"));
  constexpr std::uint64_t kEpoch = 2 * 9 + 6;
  std::set<std::set<std::size_t>> extra;  // the samples of b that come twice
  for (std::uint64_t epoch = 0; epoch < 12; ++epoch) {
    std::map<std::size_t, int> seen;
    for (std::uint64_t i = 0; i < kEpoch; ++i) ++seen[blend->index_at(3, epoch * kEpoch + i)];
    std::set<std::size_t> twice;
    for (std::size_t index = 0; index < 9; ++index) EXPECT_EQ(seen[index], 2);
    for (std::size_t index = 9; index < 13; ++index) {
      EXPECT_GE(seen[index], 1);
      if (seen[index] == 2) twice.insert(index);
    }
    EXPECT_EQ(twice.size(), 2U);
    extra.insert(twice);
  }
  EXPECT_GT(extra.size(), 2U);  // each epoch draws anew
  EXPECT_EQ(blend->description(), "epochs of 2 data sets: a x 2, b x 1.5");
  // Repetitions multiply.
  const auto outer = Dataset::open(
      v2("o.yaml", "  train: {blend_epochized: [{repetitions: 3, path: e.yaml}, {path: c, split_part: val}]}\n"));
  EXPECT_EQ(counts(*outer, 6 * 9 + 18 + 2), (Counts{{"a", 54}, {"b", 18}, {"c:val", 2}}));
}

TEST_F(Blends, ComeFromAListOfPaths) {
  DatasetConfig config;
  config.blend = {"0.7", folder_ / "a", "0.3", folder_ / "b"};
  EXPECT_EQ(counts(*Dataset::open(config)), (Counts{{"a", 2867}, {"b", 1229}}));
  config.blend = {folder_ / "a", folder_ / "c"};  // 9 and 3 samples
  EXPECT_EQ(counts(*Dataset::open(config)), (Counts{{"a", 3072}, {"c", 1024}}));
  config.blend = {folder_ / "a"};
  EXPECT_EQ(Dataset::open(config)->fingerprint(), Dataset::open(folder_ / "a")->fingerprint());
  config.blend = {"1", folder_ / "a", "b"};
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got 'b' as item 3, want a weight before each path", Dataset::open(config));
  config.blend = {"1", folder_ / "a", "-2", "b"};
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got weight -2, want one above 0", Dataset::open(config));
  config.path = folder_ / "a";
  EXPECT_DFM_ERROR(ExitCode::kConfig, "beside dataset.path", Dataset::open(config));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "dataset.path: got no value", Dataset::open(DatasetConfig{}));
  EXPECT_EQ(with_absolute_paths({"0.5", "/x/../a/", "2", "/b"}), (std::vector<std::string>{"0.5", "/a", "2", "/b"}));
}

TEST_F(Blends, LoadTheSameForAnyNumberOfWorkersAndDataRanks) {
  const fs::path path = v2("x.yaml", "  train: {blend: [{weight: 3, path: a}, {weight: 2, path: b}]}\n");
  std::map<std::int64_t, std::size_t> want;  // index by position
  for (const std::int64_t num_ranks : {1, 3}) {
    std::map<std::int64_t, std::size_t> got;
    for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
      LoaderOptions options{.limits = {.max_tokens = 64}, .global_batch_size = 7};
      options.num_workers = 1 + rank, options.data_rank = rank, options.num_data_ranks = num_ranks;
      options.first_position = 4090;  // across the end of a period
      StepLoader loader(Dataset::open(path), options);
      for (int step = 0; step < 4; ++step) {
        for (const LoadedSample& loaded : loader.next().samples) got[loaded.position] = loaded.index;
      }
    }
    if (num_ranks == 1) want = got;
    EXPECT_EQ(got, want);
    EXPECT_EQ(got.size(), 28U);
  }
}

TEST_F(Blends, RefuseSetsOfOtherEncoders) {
  const auto with = [&](const std::function<void(DatasetCard&)>& change) {
    DatasetCard card = *load_card(folder_ / "a");
    change(card);
    std::ofstream(folder_ / "b" / DatasetCard::kFileName) << to_json([&] {
      card.num_samples = 4;
      return card;
    }());
    return Dataset::open(v2("x.yaml", "  train: {blend: [{path: a}, {path: b}]}\n"));
  };
  EXPECT_DFM_ERROR(ExitCode::kData, "data set b: got tokenizer other/X, want builtin as of data set a",
                   with([](DatasetCard& card) { card.tokenizer = "other/X"; }));
  EXPECT_DFM_ERROR(ExitCode::kData, "text encoder t5, want builtin",
                   with([](DatasetCard& card) { card.text_encoder = "t5"; }));
  EXPECT_DFM_ERROR(ExitCode::kData, "temporal compression 8, want 4",
                   with([](DatasetCard& card) { card.temporal_compression = 8; }));
  EXPECT_DFM_ERROR(ExitCode::kData, "other latent statistics", with([](DatasetCard& card) {
                     card.latent_statistics_frames = 1;
                     card.latent_mean.assign(16, 0.0), card.latent_std.assign(16, 1.0);
                   }));
  EXPECT_EQ(with([](DatasetCard& card) { card.tokenizer = "/data/builtin/"; })->entries().size(), 13U);
}

TEST_F(Blends, RefuseYamlsThatAreNone) {
  const auto expect = [&](const std::string& text, const std::string& error) {
    EXPECT_DFM_ERROR(ExitCode::kData, error, Dataset::open(yaml("bad.yaml", text)));
  };
  const auto expect_v2 = [&](const std::string& splits, const std::string& error) {
    EXPECT_DFM_ERROR(ExitCode::kData, error, Dataset::open(v2("bad.yaml", splits)));
  };
  EXPECT_DFM_ERROR(ExitCode::kData, "got no such file", Dataset::open(folder_ / "absent.yaml"));
  expect("splits: [", "bad.yaml:");
  expect("[]", "want a Metadataset");
  expect("__class__: CrudeWebdataset\n", "got class megatron.energon.CrudeWebdataset");
  expect("__module__: os\n__class__: Metadataset\n", "got class os.Metadataset");
  expect("a: &a [*a]\nsplits: *a\n", "unknown key `a`");
  expect("splits: 3\n", "no map of splits");
  expect("splits:\n  train:\n    blend: [{path: a}]\n", "bad.yaml:3: got the unknown key `blend`");
  expect_v2("  val: {path: a}\n", "got no split train, want it beside val");
  expect_v2("  train: {blend: []}\n", "got no data set in split train");
  expect_v2("  train:\n    blend:\n      - {path: a}\n      - {path: nowhere}\n",
            "nowhere: got no such folder or YAML");
  expect_v2("  train: {path: nowhere}\n", "bad.yaml:4)");
  expect_v2("  train: {path: bad.yaml}\n", "contains itself");
  expect_v2("  train: {blend: [{path: a, weight: 0}]}\n", "got weight 0, want a number above 0");
  expect_v2("  train: {blend: [{path: a, weight: -1}]}\n", "got weight -1");
  expect_v2("  train: {blend: [{path: a, weight: .nan}]}\n", "got weight .nan");
  expect_v2("  train: {blend_epochized: [{path: a, weight: 1}]}\n", "unknown key `weight`");
  expect_v2("  train: {blend: [{weight: 1}]}\n", "without `path`");
  expect_v2("  train: {blend: [{path: 's3://x/y'}]}\n", "address s3://x/y");
  expect_v2("  train: {blend: [{join: [{path: a}], joiner: x}]}\n", "got `join`");
  expect_v2("  train: {concat: [{path: a}]}\n", "got `concat`");
  expect_v2("  train: {path: a, subset: {range: [0, 5]}}\n", "got `subset`");
  expect_v2("  train: {path: a, split_config: other.yaml}\n", "split_config other.yaml");
  expect_v2("  train: {path: c, split_part: test}\n", "no shard in split test");
  expect_v2("  train: {path: c, split_part: later}\n", "no shard in split later");
  expect_v2("  train: {blend: [{path: a, weight: 1}, {path: b, weight: 1e6}]}\n", "data set a: got the part");
  v2("e.yaml", "  train: {blend_epochized: [{path: a}, {path: b}]}\n");
  expect_v2("  train: {blend: [{path: e.yaml}]}\n", "inside each other");
  v2("one.yaml", "  train: {blend: [{path: two.yaml}]}\n");
  v2("two.yaml", "  train: {blend: [{path: a}, {path: one.yaml}]}\n");
  EXPECT_DFM_ERROR(ExitCode::kData, "one.yaml: got a Metadataset that contains itself",
                   Dataset::open(folder_ / "one.yaml"));
}

DatasetCard card_with_statistics(std::int64_t frames) {
  DatasetCard card = test::small_card(4);
  card.latent_statistics_frames = frames;
  for (std::int64_t i = 0; i < 16 * frames; ++i) {
    card.latent_mean.push_back(0.25 * static_cast<double>(i) - 3);
    card.latent_std.push_back(0.5 + 0.1 * static_cast<double>(i % 7));
  }
  return card;
}

TEST(LatentScale, NormalisesPerChannelAndFrameAndBack) {
  const DatasetCard card = card_from_json(to_json(card_with_statistics(2)), "here");
  EXPECT_EQ(card.latent_std, card_with_statistics(2).latent_std);
  const LatentScale scale(card);
  EXPECT_FALSE(scale.is_identity());
  for (const std::int64_t frames : {1, 2, 4}) {
    const at::Tensor latent = at::arange(16 * frames * 6, at::kFloat).remainder(13.0).view({16, frames, 2, 3});
    const at::Tensor got = scale.normalise(latent);
    for (std::int64_t c = 0; c < 16; ++c) {
      for (std::int64_t t = 0; t < frames; ++t) {
        const auto at = static_cast<std::size_t>(2 * c + std::min<std::int64_t>(t, 1));
        const at::Tensor want = (latent[c][t].to(at::kDouble) - card.latent_mean[at]) / card.latent_std[at];
        EXPECT_TRUE(at::allclose(got[c][t].to(at::kDouble), want, 1e-6, 1e-6));
      }
    }
    EXPECT_TRUE(at::allclose(scale.denormalise(got), latent, 1e-5, 1e-5));
    const at::Tensor half = latent.to(at::kBFloat16);  // rounded once
    EXPECT_TRUE(at::equal(scale.normalise(half), scale.normalise(half.to(at::kFloat)).to(at::kBFloat16)));
  }
  const at::Tensor latent = at::ones({16, 1, 2, 2});
  EXPECT_TRUE(LatentScale().is_identity());
  EXPECT_TRUE(LatentScale(test::small_card(1)).normalise(latent).is_same(latent));
  EXPECT_DFM_ERROR(ExitCode::kInternal, "8 channels", scale.normalise(at::ones({8, 1, 2, 2})));
}

TEST(LatentScale, IsAppliedByTheLoaderAndNotByReading) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 4, 4);
  const DatasetCard card = card_with_statistics(1);
  std::ofstream(folder / DatasetCard::kFileName) << to_json(card);
  const auto dataset = Dataset::open(folder.path());
  const LoadedStep step = StepLoader(dataset, {.limits = {.max_tokens = 64}, .global_batch_size = 4}).next();
  for (const LoadedSample& loaded : step.samples) {
    const at::Tensor stored = dataset->read(loaded.index).latent_CTHW;
    EXPECT_TRUE(at::equal(stored, test::small_latent(static_cast<std::int64_t>(loaded.index)).to(at::kBFloat16)));
    EXPECT_TRUE(at::equal(loaded.sample.latent_CTHW, LatentScale(card).normalise(stored)));
    EXPECT_FALSE(at::equal(loaded.sample.latent_CTHW, stored));
  }
}

TEST(DatasetCard, RefusesStatisticsThatDoNotFit) {
  DatasetCard card = card_with_statistics(2);
  card.latent_std.pop_back();
  EXPECT_DFM_ERROR(ExitCode::kData, "32 numbers in latent_mean and 31", card_from_json(to_json(card), "here"));
  card.latent_std.push_back(0);
  EXPECT_DFM_ERROR(ExitCode::kData, "the second above 0", card_from_json(to_json(card), "here"));
}

}  // namespace
}  // namespace dfm::data
