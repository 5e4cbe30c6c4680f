#include "dfm/prepare/prepare.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <map>

#include "dfm/base/file.h"
#include "dfm/data/dataset.h"
#include "dfm/formats/media.h"
#include "dfm/models/encoders.h"
#include "prepare/butterflies.h"
#include "prepare/run_state.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;

using test::butterflies;
using test::contents;
using test::expect_same_files;
using test::quiet;

at::Tensor gradient_picture(std::int64_t height, std::int64_t width, std::int64_t shade) {
  const at::Tensor rows = at::arange(height).reshape({height, 1, 1}),
                   columns = at::arange(width).reshape({1, width, 1});
  const at::Tensor colours = at::arange(3).reshape({1, 1, 3}) * 40;
  return ((rows + 2 * columns + colours + shade).remainder(256)).to(at::kByte).contiguous();
}

void write_caption(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

// Three pictures, a clip of 11 frames at 10 frames a second, a broken picture; two without a caption.
void make_media(const fs::path& folder) {
  fs::create_directories(folder / "deeper");
  formats::write_png(folder / "a.png", gradient_picture(64, 100, 0));
  write_caption(folder / "a.txt", "a first picture\n");
  formats::write_png(folder / "deeper" / "b.png", gradient_picture(90, 50, 30));
  write_caption(folder / "deeper" / "b.txt", "  \n");
  formats::write_png(folder / "d.png", gradient_picture(64, 100, 60));
  write_caption(folder / "d.txt", "a first picture");
  std::ofstream(folder / "broken.png") << "no picture at all";
  write_caption(folder / "broken.txt", "a broken picture");
  std::vector<at::Tensor> frames;
  for (std::int64_t t = 0; t < 11; ++t) frames.push_back(gradient_picture(48, 64, 3 * t));
  formats::write_mp4(folder / "c.mp4", at::stack(frames), {.fps = 10});
}

TEST(Prepare, MakesADataSetOfPicturesAndClips) {
  const test::TempFolder folder;
  make_media(folder / "media");
  PrepareOptions options;
  options.input = (folder / "media").string();
  options.output_dir = folder / "out";
  options.short_side = 48;
  options.tokenizer = options.text_encoder = "builtin";
  const Report report = run(options, quiet());
  EXPECT_EQ(report.num_samples, 4);
  EXPECT_EQ(report.num_images, 3);
  EXPECT_EQ(report.num_clips, 1);
  EXPECT_EQ(report.num_without_caption, 2);
  EXPECT_EQ(report.num_shards, 1);
  ASSERT_EQ(report.skipped.size(), 1U);
  EXPECT_EQ(report.skipped[0].name, "broken.png");
  const std::string text = describe(report);
  for (const char* words : {"4 samples (3 pictures, 1 clip)", "2 samples without one", "1 file\n",
                            "broken.png: ", "dfm train --dataset-path"}) {
    EXPECT_NE(text.find(words), std::string::npos) << words << " is not in\n" << text;
  }

  const auto dataset = data::Dataset::open(options.output_dir);
  const auto tokenizer = models::make_tokenizer("builtin", {});
  ASSERT_EQ(dataset->entries().size(), 4U);
  EXPECT_EQ(dataset->card().fps, 10);
  EXPECT_EQ(dataset->card().num_skipped, 1);
  EXPECT_EQ(dataset->card().tokenizer, "builtin");
  std::map<std::string, std::size_t> by_shape;
  for (std::size_t i = 0; i < 4; ++i) {
    const data::Sample sample = dataset->read(i);
    EXPECT_EQ(sample.problem, "");
    EXPECT_GE(sample.text_LE.size(0), 1);
    EXPECT_EQ(sample.text_LE.size(1), dataset->card().text_width);
    const auto& entry = dataset->entries()[i];
    ++by_shape[fmt::format("{}x{}x{}", entry.frames, entry.height, entry.width)];
    if (entry.frames > 1) {
      EXPECT_EQ(sample.fps, 10);
      EXPECT_EQ(sample.caption, "");
    }
  }
  // 64x100 -> 48x64 (75 cut to 64), 90x50 -> 80x48 (86 cut to 80), the clip of 11 frames cut to 9.
  EXPECT_EQ(by_shape, (std::map<std::string, std::size_t>{{"1x6x8", 2}, {"1x10x6", 1}, {"3x6x8", 1}}));
  // The first sample is a.png, encoded.
  const at::Tensor pixels = formats::resize_rgb(gradient_picture(64, 100, 0), 48, 64);
  const at::Tensor latent =
      tokenizer->encode(pixels.permute({2, 0, 1}).unsqueeze(1).to(at::kFloat).div(127.5).sub(1).contiguous());
  EXPECT_TRUE(at::equal(dataset->read(0).latent_CTHW, latent.to(at::kBFloat16)));
  EXPECT_EQ(dataset->read(0).caption, "a first picture");
}

TEST(Prepare, DoesNotDependOnTheNumberOfWorkers) {
  const test::TempFolder folder;
  for (const int num_workers : {1, 2, 3}) {
    PrepareOptions options = butterflies(folder / std::to_string(num_workers), 10);
    options.num_workers = num_workers;
    EXPECT_EQ(run(options, quiet()).num_samples, 10);
  }
  expect_same_files(folder / "2", folder / "1");
  expect_same_files(folder / "3", folder / "1");
}

// A process of its own is killed after `num_done` items; it finds its folder in the environment.
void expect_continues_after_kill(std::uint64_t num_done) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::optional<test::TempFolder> folder;
  if (std::getenv("DFM_TEST_KILLED_RUN") == nullptr) {
    folder.emplace();
    ASSERT_EQ(setenv("DFM_TEST_KILLED_RUN", folder->path().c_str(), 1), 0);
  }
  const fs::path base = std::getenv("DFM_TEST_KILLED_RUN");
  EXPECT_EXIT(
      {
        RunContext context = quiet();
        context.on_progress = [&](std::uint64_t done, std::uint64_t) {
          if (done == num_done) ::raise(SIGKILL);
        };
        run(butterflies(base / "killed", 10), context);
      },
      testing::KilledBySignal(SIGKILL), "");
  unsetenv("DFM_TEST_KILLED_RUN");
  const auto left = contents(base / "killed");
  EXPECT_FALSE(left.contains("dfm_dataset.json"));
  EXPECT_EQ(left.contains("rank0-000000.tar"), num_done > 3);
  EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", data::Dataset::open(base / "killed"));

  const Report continued = run(butterflies(base / "killed", 10), quiet());
  EXPECT_EQ(continued.num_continued, static_cast<std::int64_t>((num_done - 1) / 3 * 3));
  EXPECT_EQ(continued.num_samples, 10);
  run(butterflies(base / "undisturbed", 10), quiet());
  expect_same_files(base / "killed", base / "undisturbed");
}

TEST(PrepareDeathTest, ContinuesAfterAKillInTheFirstShard) { expect_continues_after_kill(2); }
TEST(PrepareDeathTest, ContinuesAfterAKillInTheMiddle) { expect_continues_after_kill(8); }
TEST(PrepareDeathTest, ContinuesAfterAKillAtTheEnd) { expect_continues_after_kill(10); }

// What a kill leaves between the steps of committing a shard and of finishing.
TEST(Prepare, ContinuesFromEveryHalfDoneStep) {
  const test::TempFolder folder;
  run(butterflies(folder / "want", 10), quiet());
  const auto stop_after = [&](const std::string& name, std::uint64_t num_done) {
    RunContext context = quiet();
    context.on_progress = [&](std::uint64_t done, std::uint64_t) {
      if (done == num_done) throw DataError("stopped");
    };
    EXPECT_DFM_ERROR(ExitCode::kData, "stopped", run(butterflies(folder / name, 10), context));
  };
  // The record of a shard is there, its name not yet final.
  stop_after("record", 5);
  fs::rename(folder.path() / "record" / "rank0-000000.tar", folder.path() / "record" / "rank0-000000.tar.tmp");
  EXPECT_EQ(run(butterflies(folder / "record", 10), quiet()).num_continued, 0);
  expect_same_files(folder / "record", folder / "want");
  // A file was being written beside its name.
  stop_after("temporary", 8);
  std::ofstream(folder.path() / "temporary" / "dfm_dataset.json.tmp") << "{";
  EXPECT_EQ(run(butterflies(folder / "temporary", 10), quiet()).num_continued, 6);
  expect_same_files(folder / "temporary", folder / "want");
  // All but the card.
  fs::copy(folder / "want", folder / "card", fs::copy_options::recursive);
  stop_after("state", 10);
  fs::copy(folder.path() / "state" / ".dfm_prepare", folder.path() / "card" / ".dfm_prepare",
           fs::copy_options::recursive);
  fs::remove(folder.path() / "card" / "dfm_dataset.json");
  EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", data::Dataset::open(folder / "card"));
  // The state knows three of the four shards.
  EXPECT_DFM_ERROR(ExitCode::kData, "rank0-000003.tar.json", run(butterflies(folder / "card", 10), quiet()));
}

TEST(Prepare, HasNothingToDoInAFinishedFolder) {
  const test::TempFolder folder;
  const PrepareOptions options = butterflies(folder / "out", 4);
  run(options, quiet());
  const auto before = contents(folder / "out");
  const Report report = run(options, quiet());
  EXPECT_TRUE(report.already_complete);
  EXPECT_EQ(report.num_samples, 4);
  EXPECT_EQ(report.num_shards, 2);
  EXPECT_NE(describe(report).find("nothing to do"), std::string::npos);
  EXPECT_TRUE(contents(folder / "out") == before);

  PrepareOptions other = options;
  other.short_side = 48;
  other.fps = 12;
  EXPECT_DFM_ERROR(ExitCode::kConfig, "fps each clip's own, now 12", run(other, quiet()));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "short_side 32, now 48", run(other, quiet()));
}

TEST(Prepare, RefusesToContinueWithOtherSettings) {
  const test::TempFolder folder;
  RunContext context = quiet();
  context.on_progress = [](std::uint64_t done, std::uint64_t) {
    if (done == 4) throw DataError("stopped");
  };
  EXPECT_DFM_ERROR(ExitCode::kData, "stopped", run(butterflies(folder / "out", 10), context));
  PrepareOptions other = butterflies(folder / "out", 10);
  other.num_video_frames = 5;
  EXPECT_DFM_ERROR(ExitCode::kConfig, "num_video_frames 9, now 5", run(other, quiet()));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "media 10 items", run(butterflies(folder / "out", 11), quiet()));
  other = butterflies(folder / "out", 10);
  other.num_workers = 1;  // changes nothing in the files
  EXPECT_EQ(run(other, quiet()).num_samples, 10);
}

TEST(Prepare, RefusesAFolderThatHoldsSomethingElse) {
  const test::TempFolder folder;
  write_caption(folder / "precious.txt", "keep me");
  EXPECT_DFM_ERROR(ExitCode::kData, "holds precious.txt", run(butterflies(folder.path(), 2), quiet()));
  EXPECT_DFM_ERROR(ExitCode::kData, "got a file", run(butterflies(folder / "precious.txt", 2), quiet()));
  EXPECT_EQ(contents(folder.path()).size(), 1U);
}

TEST(Prepare, RefusesAFolderThatAnotherRunWritesTo) {
  const test::TempFolder folder;
  const RunState other(folder / "out", {{"a", "b"}});
  EXPECT_DFM_ERROR(ExitCode::kData, "another `dfm prepare`", run(butterflies(folder / "out", 2), quiet()));
}

TEST(Prepare, EndsWhenNothingCanBeRead) {
  const test::TempFolder folder;
  fs::create_directory(folder / "media");
  std::ofstream(folder.path() / "media" / "x.png") << "nothing";
  std::ofstream(folder.path() / "media" / "y.mp4") << "nothing";
  PrepareOptions options = butterflies(folder / "out", 1);
  options.input = (folder / "media").string();
  options.tokenizer = options.text_encoder = "builtin";
  EXPECT_DFM_ERROR(ExitCode::kData, "2 items of which none can be read", run(options, quiet()));
  EXPECT_FALSE(fs::exists(folder.path() / "out" / "dfm_dataset.json"));
  // Once it is readable the run goes on.
  formats::write_png(folder.path() / "media" / "x.png", gradient_picture(40, 40, 0));
  EXPECT_EQ(run(options, quiet()).num_samples, 1);
}

TEST(Prepare, RequiresCaptionsWhenAsked) {
  const test::TempFolder folder;
  make_media(folder / "media");
  PrepareOptions options = butterflies(folder / "out", 1);
  options.input = (folder / "media").string();
  options.tokenizer = options.text_encoder = "builtin";
  options.require_captions = true;
  EXPECT_DFM_ERROR(ExitCode::kData, "2 of 5 items without one", run(options, quiet()));
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(Prepare, RefusesASideBelowOnePatch) {
  const test::TempFolder folder;
  PrepareOptions options = butterflies(folder / "out", 1);
  options.short_side = 15;
  EXPECT_DFM_ERROR(ExitCode::kConfig, "--short-side: got 15, want at least 16", run(options, quiet()));
}

}  // namespace
}  // namespace dfm::prepare
