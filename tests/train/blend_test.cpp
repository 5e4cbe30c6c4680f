// Training on several data sets: the order is the blend's, whatever reads it, and a checkpoint knows the sets.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dfm/base/file.h"
#include "dfm/data/dataset.h"
#include "dfm/data/loader.h"
#include "dfm/train/dry_run.h"
#include "support/errors.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

class BlendRun : public testing::Test {
 protected:
  void SetUp() override {
    test::write_tiny_dataset(folder_ / "a", 9);
    test::write_tiny_dataset(folder_ / "b", 5, 1);
    std::ofstream(folder_ / "ab.yaml") << "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n"
                                          "  train:\n    blend:\n      - {weight: 3, path: a}\n"
                                          "      - {weight: 1, path: ./b}\n";
  }
  [[nodiscard]] TrainConfig config(const std::string& run) const {
    TrainConfig result = test::tiny_config(folder_ / "ab.yaml", folder_ / run);
    result.train.train_iters = 4;
    return result;
  }
  void change_card(const std::string& set, const std::function<void(data::DatasetCard&)>& change) const {
    data::DatasetCard card = *data::load_card(folder_ / set);
    change(card);
    std::ofstream(folder_ / set / data::DatasetCard::kFileName) << data::to_json(card);
  }
  test::TempFolder folder_;
};

TEST_F(BlendRun, IsTheSameForAnyNumberOfWorkersAndAfterAStop) {
  TrainConfig one = config("one");
  one.dataset.num_workers = 1;
  const test::TinyResult want = test::run_tiny(one);
  ASSERT_EQ(want.losses.size(), 4U);
  EXPECT_NE(want.output.find("Data: blend of 2 data sets: a 75%, b 25%:"), std::string::npos) << want.output;
  TrainConfig two = config("two");
  two.dataset.num_workers = 3;
  EXPECT_EQ(test::run_tiny(two).losses, want.losses);
  TrainConfig half = config("half");
  half.train.train_iters = 2;
  std::vector<double> got = test::run_tiny(half).losses;
  half.train.train_iters = 4;
  const std::vector<double> rest = test::run_tiny(half).losses;
  got.insert(got.end(), rest.begin(), rest.end());
  EXPECT_EQ(got, want.losses);
}

TEST_F(BlendRun, TakesAListInPlaceOfAYaml) {
  const test::TinyResult want = test::run_tiny(config("yaml"));
  TrainConfig list = config("list");
  list.dataset.path.clear();
  list.dataset.blend = {"3", folder_ / "a", "1", folder_ / "b"};
  EXPECT_EQ(test::run_tiny(list).losses, want.losses);
  // The list takes the place of a stored path when it was given, and is the same data.
  TrainConfig both = config("yaml");
  both.train.train_iters = 5;
  both.dataset.blend = list.dataset.blend;
  RunContext context;
  context.explicit_options = {{"dataset.blend", "command line"}};
  EXPECT_EQ(test::run_tiny(both, context).losses.size(), 1U);
  both.checkpoint.save = folder_ / "neither";
  EXPECT_DFM_ERROR(ExitCode::kConfig, "dataset.blend: got a value beside dataset.path", test::run_tiny(both));
}

TEST_F(BlendRun, DoesNotGoOnWithOtherWeights) {
  test::run_tiny(config("run"));
  const std::string yaml = read_text_file(folder_ / "ab.yaml");
  std::ofstream(folder_ / "ab.yaml") << std::string(yaml).replace(yaml.find("weight: 3"), 9, "weight: 2");
  TrainConfig more = config("run");
  more.train.train_iters = 5;
  EXPECT_DFM_ERROR(ExitCode::kData, "hint: dataset.allow_change=true", test::run_tiny(more));
  more.dataset.allow_change = true;
  EXPECT_EQ(test::run_tiny(more).losses.size(), 1U);
}

TEST_F(BlendRun, NamesTheTokenizersOfARunAndOfOtherData) {
  TrainConfig run = config("run");
  run.dataset.path = folder_ / "a";
  test::run_tiny(run);
  change_card("a", [](data::DatasetCard& card) { card.tokenizer = "nvidia/Cosmos-0.1-Tokenizer-CV8x8x8"; });
  run.train.train_iters = 5;
  EXPECT_DFM_ERROR(ExitCode::kData, "got tokenizer nvidia/Cosmos-0.1-Tokenizer-CV8x8x8, want builtin as in",
                   test::run_tiny(run));
  run.dataset.allow_change = true;
  EXPECT_EQ(test::run_tiny(run).losses.size(), 1U);
}

TEST_F(BlendRun, TrainsOnNormalisedLatents) {
  TrainConfig raw = config("raw");
  raw.dataset.path = folder_ / "a";
  const std::vector<double> want = test::run_tiny(raw).losses;
  const auto statistics = [](double mean, double deviation) {
    return [=](data::DatasetCard& card) {
      card.latent_statistics_frames = 1;
      card.latent_mean.assign(16, mean), card.latent_std.assign(16, deviation);
    };
  };
  TrainConfig scaled = config("unit");
  scaled.dataset.path = folder_ / "a";
  change_card("a", statistics(0, 1));
  EXPECT_EQ(test::run_tiny(scaled).losses, want);
  change_card("a", statistics(0.5, 2));
  scaled.checkpoint.save = folder_ / "scaled";
  EXPECT_NE(test::run_tiny(scaled).losses, want);
  scaled.checkpoint.save = folder_ / "unit";
  scaled.train.train_iters = 5;
  EXPECT_DFM_ERROR(ExitCode::kData, "other latent statistics", test::run_tiny(scaled));
}

TEST_F(BlendRun, IsPlannedByADryRun) {
  TrainConfig blend = config("run");
  const std::vector<std::int64_t> lengths = follow_dataset_for_dry_run(blend);
  const auto dataset = data::Dataset::open(folder_ / "ab.yaml");
  ASSERT_EQ(lengths.size(), 6U);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_EQ(lengths[i], data::num_tokens(dataset->entries()[dataset->index_at(1234, i)], 2, 1));
  }
  EXPECT_EQ(blend.model.crossattn_emb_size, test::kTextWidth);
}

}  // namespace
}  // namespace dfm::train
