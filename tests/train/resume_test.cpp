#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/config/tree.h"
#include "dfm/train/recipes.h"
#include "train/tiny_run.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;

// Trains as the command line does: the tiny configuration stands for the recipe, `overrides` for the command line.
class Resume : public testing::Test {
 protected:
  void SetUp() override { test::write_tiny_dataset(data(), 13); }
  [[nodiscard]] fs::path data() const { return folder_.path() / "data"; }
  [[nodiscard]] fs::path run_folder() const { return folder_.path() / "run"; }

  test::TinyResult train(const std::vector<std::string>& overrides = {}, bool is_data_given = true) const {
    TrainConfig tiny = test::tiny_config(is_data_given ? data() : "", run_folder());
    tiny.train.train_iters = 2;
    ConfigSources sources;
    sources.stored_yaml = config::to_yaml(tiny, config::YamlStyle::kFull);
    sources.stored_where = "tiny";
    sources.overrides = overrides;
    const LoadedConfig loaded = load_config(sources);
    RunContext context;
    context.explicit_options = loaded.explicit_options;
    context.over_stored = [sources](const std::string& yaml, const std::string& where) {
      ConfigSources again = sources;
      again.stored_yaml = yaml;
      again.stored_where = where;
      return load_config(again).config;
    };
    return test::run_tiny(loaded.config, context);
  }
  [[nodiscard]] std::string error_of(const std::vector<std::string>& overrides, ExitCode code) const {
    try {
      train(overrides);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    return "no error";
  }
  test::TempFolder folder_;
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST_F(Resume, ContinuesWhatItFindsAndSaysSoFirst) {
  train({"optimizer.lr=2e-3"});
  const test::TinyResult second = train({"train.train_iters=4"});
  EXPECT_EQ(second.summary.iteration, 4);
  EXPECT_EQ(second.summary.steps, 2);
  EXPECT_TRUE(second.output.starts_with("Continuing from ")) << second.output;
  expect_contains(second.output, "train.train_iters: 2 -> 4 (command line)");
  EXPECT_EQ(second.output.find("optimizer.lr"), std::string::npos) << "the stored rate holds: " << second.output;
}

TEST_F(Resume, RefusesWhenToldTo) {
  train();
  const std::string error = error_of({"checkpoint.resume=false"}, ExitCode::kConfig);
  expect_contains(error, "checkpoint.save");
  expect_contains(error, "iter_0000002");
}

TEST_F(Resume, LoadsARunOrAnIterationFolderIntoANewRun) {
  train({"checkpoint.save_interval=1"});
  const test::TinyResult from_run =
      train({"checkpoint.load=" + run_folder().string(), "checkpoint.save=" + (folder_.path() / "b").string(),
             "train.train_iters=3"});
  EXPECT_EQ(from_run.summary.steps, 1);
  EXPECT_EQ(from_run.summary.checkpoint, folder_.path() / "b" / "iter_0000003");
  const test::TinyResult from_iteration =
      train({"checkpoint.load=" + (run_folder() / "iter_1").string(),
             "checkpoint.save=" + (folder_.path() / "c").string(), "train.train_iters=3"});
  EXPECT_EQ(from_iteration.summary.steps, 2);
  EXPECT_EQ(from_iteration.losses.back(), from_run.losses.back());
}

TEST_F(Resume, LoadWithoutSaveGoesOnInTheRunThatWasLoaded) {
  train();
  fs::rename(run_folder(), folder_.path() / "moved");
  const test::TinyResult second =
      train({"checkpoint.load=" + (folder_.path() / "moved").string(), "train.train_iters=3"});
  EXPECT_EQ(second.summary.run_folder, folder_.path() / "moved");
  EXPECT_FALSE(fs::exists(run_folder()));
}

TEST_F(Resume, DoesNotForkARunInsideItsFolder) {
  train({"checkpoint.save_interval=1"});
  expect_contains(error_of({"checkpoint.load=" + (run_folder() / "iter_0000001").string()}, ExitCode::kConfig),
                  "not the newest");
  EXPECT_EQ(error_of({"checkpoint.load=" + (run_folder() / "iter_0000009").string()}, ExitCode::kCheckpoint).empty(),
            false);
}

TEST_F(Resume, NamesAChangedShapeSeedOrDataSet) {
  train();
  std::string error = error_of({"train.train_iters=4", "model.num_layers=3"}, ExitCode::kConfig);
  expect_contains(error, "model.num_layers: got 3 (command line), want 2");
  error = error_of({"train.train_iters=4", "rng.seed=7"}, ExitCode::kConfig);
  expect_contains(error, "rng.seed: got 7 (command line), want 1234");
  expect_contains(error, "checkpoint.pretrained_checkpoint");
  error = error_of({"rng.seed=7"}, ExitCode::kConfig);  // although nothing is left to train
  expect_contains(error, "rng.seed: got 7 (command line), want 1234");

  const fs::path other = folder_.path() / "other";
  test::write_tiny_dataset(other, 14);
  error = error_of({"train.train_iters=4", "dataset.path=" + other.string()}, ExitCode::kData);
  expect_contains(error, "dataset.allow_change=true");
  const test::TinyResult allowed =
      train({"train.train_iters=4", "dataset.path=" + other.string(), "dataset.allow_change=true"});
  EXPECT_EQ(allowed.summary.steps, 2);
}

TEST_F(Resume, PretrainedTakesTheWeightsOnly) {
  const fs::path weights = train().summary.checkpoint / "model.pth";
  for (const fs::path& path : {weights, weights.parent_path(), run_folder()}) {
    const fs::path save = folder_.path() / path.filename().concat("_new");
    const test::TinyResult second =
        train({"checkpoint.pretrained_checkpoint=" + path.string(), "checkpoint.save=" + save.string(),
               "optimizer.lr=0", "optimizer.min_lr=0", "rng.seed=8"});
    EXPECT_EQ(second.summary.iteration, 2);
    EXPECT_EQ(second.summary.steps, 2);
    const auto got = checkpoint::TensorFile(second.summary.checkpoint / "model_weights.pt").read_all();
    const auto want = checkpoint::TensorFile(weights).read_all();
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i].second, want[i].second)) << got[i].first;
  }
}

TEST_F(Resume, LeavesAFolderOfOtherThingsAlone) {
  fs::create_directories(run_folder());
  std::ofstream(run_folder() / "holiday.jpg") << "x";
  expect_contains(error_of({}, ExitCode::kConfig), "holiday.jpg");
  EXPECT_EQ(std::distance(fs::directory_iterator(run_folder()), fs::directory_iterator()), 1);
}

TEST_F(Resume, ShapeFollowsTheDataUnlessTheUserSaysOtherwise) {
  train();
  const std::string yaml = [&] {
    std::ifstream in(run_folder() / "iter_0000002" / "run_config.yaml");
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  expect_contains(yaml, fmt::format("crossattn_emb_size: {}", test::kTextWidth));
  const std::string error = error_of(
      {"model.crossattn_emb_size=512", "checkpoint.save=" + (folder_.path() / "b").string()}, ExitCode::kConfig);
  expect_contains(error, "model.crossattn_emb_size: got 512 (command line), want 24, the text width of the data set");
}

TEST_F(Resume, KnowsTheDataSetOfTheRunItContinues) {
  train();
  EXPECT_EQ(train({"train.train_iters=3"}, false).summary.steps, 1);
  EXPECT_THROW(train({"checkpoint.save=" + (folder_.path() / "b").string()}, false), ConfigError);
}

void flip_a_bit(const fs::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(fs::file_size(path) / 2));
  const char byte = static_cast<char>(file.peek() ^ 1);
  file.seekp(static_cast<std::streamoff>(fs::file_size(path) / 2));
  file.write(&byte, 1);
}

TEST_F(Resume, DamageIsACheckpointErrorWhenNothingElseIsThere) {
  const fs::path folder = train().summary.checkpoint;
  flip_a_bit(folder / "optimizer_states.pt");
  expect_contains(error_of({"train.train_iters=4"}, ExitCode::kCheckpoint), "optimizer_states.pt");
  fs::remove(folder / "extra_state.pt");
  expect_contains(error_of({"train.train_iters=4"}, ExitCode::kCheckpoint), "extra_state.pt");
}

TEST_F(Resume, GoesBackToTheNewestWholeCheckpoint) {
  const std::vector<double> want =
      train({"train.train_iters=8", "checkpoint.save=" + (folder_.path() / "whole").string(),
             "checkpoint.save_interval=0"})
          .losses;
  train({"train.train_iters=6", "checkpoint.save_interval=2"});
  flip_a_bit(run_folder() / "iter_0000006" / "optimizer_states.pt");          // flipped
  fs::resize_file(run_folder() / "iter_0000004" / "model_weights.pt", 1000);  // cut
  const test::TinyResult third = train({"train.train_iters=8", "checkpoint.save_interval=2"});
  expect_contains(third.output, "iter_0000006/optimizer_states.pt");
  expect_contains(third.output, "iter_0000004/model_weights.pt");
  expect_contains(third.output, "Continuing from " + (run_folder() / "iter_0000002").string());
  EXPECT_EQ(third.losses, std::vector<double>(want.begin() + 2, want.end()));
  for (const auto& folder : checkpoint::complete_iterations(run_folder())) checkpoint::verify_iteration(folder.path);
}

TEST_F(Resume, RefusesADamagedCheckpointThatIsAskedForByName) {
  train({"train.train_iters=4", "checkpoint.save_interval=2"});
  const fs::path newest = run_folder() / "iter_0000004";
  const std::vector<std::string> load = {"train.train_iters=6", "checkpoint.load=" + newest.string(),
                                         "checkpoint.save=" + (folder_.path() / "new").string()};
  flip_a_bit(newest / "optimizer_states.pt");
  expect_contains(error_of(load, ExitCode::kCheckpoint), "optimizer_states.pt");
  // Of two saves, each file good by itself.
  fs::copy_file(run_folder() / "iter_0000002" / "optimizer_states.pt", newest / "optimizer_states.pt",
                fs::copy_options::overwrite_existing);
  expect_contains(error_of(load, ExitCode::kCheckpoint), "optimizer_states.pt");
}

}  // namespace
}  // namespace dfm::train
