// Whole runs with encoders that gain from batches, or do not.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <fstream>

#include "dfm/data/dataset.h"
#include "dfm/formats/media.h"
#include "dfm/prepare/prepare.h"
#include "prepare/butterflies.h"
#include "prepare/fakes.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;
using test::butterflies;
using test::contents;
using test::expect_same_files;
using test::FakeTextEncoder;
using test::FakeTokenizer;
using test::quiet;

// Pictures of three shapes, a white one, a clip and a broken picture; five captions.
void make_media(const fs::path& folder) {
  fs::create_directories(folder);
  for (std::int64_t i = 0; i < 20; ++i) {
    const fs::path path = folder / fmt::format("{:02}.png", i);
    const std::int64_t width = 32 + 32 * (i % 3);
    const at::Tensor shade = at::full({32, width, 3}, i == 7 ? 255 : 10 * i, at::kByte);
    formats::write_png(path, shade);
    std::ofstream(fs::path(path).replace_extension(".txt")) << "caption " << i % 5;
  }
  std::ofstream(folder / "10a.png") << "no picture";
  std::vector<at::Tensor> frames;
  for (std::int64_t t = 0; t < 9; ++t) frames.push_back(at::full({32, 48, 3}, 20 * t, at::kByte));
  formats::write_mp4(folder / "11a.mp4", at::stack(frames), {.fps = 10});
}

PrepareOptions media_options(const fs::path& media, const fs::path& out) {
  PrepareOptions options;
  options.input = media.string();
  options.output_dir = out;
  options.short_side = 32;
  options.tokenizer = options.text_encoder = "builtin";
  options.num_workers = 3;
  options.encode_batch_pixels = 8 * 32 * 32;
  options.shard_max_count = 7;
  return options;
}

struct Fakes {
  std::shared_ptr<FakeTokenizer> tokenizer;
  std::shared_ptr<FakeTextEncoder> text = std::make_shared<FakeTextEncoder>();
  explicit Fakes(bool gains) : tokenizer(std::make_shared<FakeTokenizer>(gains)) {}
  [[nodiscard]] RunContext context() const {
    RunContext context = quiet();
    context.tokenizer = tokenizer;
    context.text_encoder = text;
    return context;
  }
};

TEST(PrepareBatches, GiveTheSameDataSetAsOneByOne) {
  const test::TempFolder folder;
  make_media(folder / "media");
  const Fakes apart(false), together(true);
  const Report want = run(media_options(folder / "media", folder / "apart"), apart.context());
  const Report got = run(media_options(folder / "media", folder / "together"), together.context());
  expect_same_files(folder / "together", folder / "apart");
  EXPECT_EQ(got.num_samples, 21);
  EXPECT_EQ(got.skipped.size(), 1U);
  for (const Report& report : {want, got}) {
    EXPECT_EQ(report.num_frames_encoded, 20 + 9);
    EXPECT_EQ(report.num_captions_encoded, 6);  // five, and none
    EXPECT_EQ(report.num_text_tokens, 5 * 10 + 1);
    EXPECT_EQ(report.num_latent_tokens, 7 * 4 + 7 * 8 + 6 * 12 + 3 * 6);
  }
  EXPECT_EQ(apart.tokenizer->batches().size(), 21U);
  EXPECT_EQ(together.tokenizer->num_encoded(), 21);
  EXPECT_LE(together.tokenizer->batches().size(), 8U);
  EXPECT_EQ(apart.text->captions().size(), 6U);
  EXPECT_EQ(together.text->captions().size(), 6U);
  EXPECT_EQ(together.text->calls().size(), 1U);
  const std::string text = describe(got);
  EXPECT_NE(text.find("29 pictures and frames"), std::string::npos) << text;
  EXPECT_NE(text.find("6 different captions"), std::string::npos) << text;
}

TEST(PrepareBatches, SkipLatentsThatAreNotFinite) {
  const test::TempFolder folder;
  make_media(folder / "media");
  const Fakes fakes(true);
  fakes.tokenizer->white_becomes = std::numeric_limits<double>::quiet_NaN();
  const Report report = run(media_options(folder / "media", folder / "out"), fakes.context());
  EXPECT_EQ(report.num_samples, 20);
  ASSERT_EQ(report.skipped.size(), 2U);
  EXPECT_EQ(report.skipped[0].name, "07.png");
  EXPECT_NE(report.skipped[0].reason.find("not finite"), std::string::npos) << report.skipped[0].reason;
}

TEST(PrepareBatches, RecordTheEncodersAndTheirStatistics) {
  const test::TempFolder folder;
  const Fakes fakes(true);
  fakes.tokenizer->statistics = {
      .num_frames = 2, .mean = std::vector<double>(32, 0.5), .std = std::vector<double>(32, 2)};
  PrepareOptions options = butterflies(folder / "out", 4);
  options.text_encoder = "some/encoder";  // of which the fake takes the place
  options.precision = models::Precision::kBf16;
  options.caption_column = "name";
  run(options, fakes.context());
  const auto card = data::load_card(folder / "out").value();
  EXPECT_EQ(card.tokenizer, "fake tokenizer");
  EXPECT_EQ(card.text_encoder, "fake text encoder");
  EXPECT_EQ(card.text_width, 6);
  EXPECT_EQ(card.latent_statistics_frames, 2);
  EXPECT_EQ(card.latent_std, std::vector<double>(32, 2));
  EXPECT_EQ(card.settings.at("precision"), "bf16");
  EXPECT_EQ(card.settings.at("caption_column"), "name");
}

// A process of its own is killed by `signal`, or fails, after some items; it finds its folder in the environment.
template <typename Predicate>
void expect_continues_after(int signal, Predicate ended) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::optional<test::TempFolder> folder;
  if (std::getenv("DFM_TEST_ENDED_RUN") == nullptr) {
    folder.emplace();
    ASSERT_EQ(setenv("DFM_TEST_ENDED_RUN", folder->path().c_str(), 1), 0);
    make_media(*folder / "media");
  }
  const fs::path base = std::getenv("DFM_TEST_ENDED_RUN");
  EXPECT_EXIT(
      {
        const Fakes fakes(true);
        RunContext context = fakes.context();
        context.watch_signals = true;
        context.on_progress = [&](std::uint64_t done, std::uint64_t) {
          if (done == 12) ::raise(signal);
        };
        const Report report = run(media_options(base / "media", base / "ended"), context);
        fmt::print(stderr, "{}", describe(report));
        ::exit(128 + report.stopped_by);
      },
      ended, signal == SIGKILL ? "" : "stopped by SIG[A-Z]+: 7 samples in 1 complete shard of .* the same command");
  unsetenv("DFM_TEST_ENDED_RUN");
  std::map<std::string, std::string> left = contents(base / "ended");
  EXPECT_FALSE(left.contains("dfm_dataset.json"));
  EXPECT_TRUE(left.contains("rank0-000000.tar"));
  EXPECT_EQ(left.contains("rank0-000001.tar.tmp"), signal == SIGKILL);
  const Fakes fakes(true), undisturbed(true);
  const Report continued = run(media_options(base / "media", base / "ended"), fakes.context());
  EXPECT_EQ(continued.num_continued, 7);
  run(media_options(base / "media", base / "undisturbed"), undisturbed.context());
  expect_same_files(base / "ended", base / "undisturbed");
}

TEST(PrepareBatchesDeathTest, ContinueAfterAKill) { expect_continues_after(SIGKILL, testing::KilledBySignal(SIGKILL)); }
TEST(PrepareBatchesDeathTest, EndInGoodOrderOnSigterm) {
  expect_continues_after(SIGTERM, testing::ExitedWithCode(128 + SIGTERM));
}
TEST(PrepareBatchesDeathTest, EndInGoodOrderOnSigint) {
  expect_continues_after(SIGINT, testing::ExitedWithCode(128 + SIGINT));
}

TEST(PrepareBatchesDeathTest, LeaveNothingHalfWrittenOnAFullDisk) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::optional<test::TempFolder> folder;
  if (std::getenv("DFM_TEST_FULL_DISK") == nullptr) {
    folder.emplace();
    ASSERT_EQ(setenv("DFM_TEST_FULL_DISK", folder->path().c_str(), 1), 0);
  }
  const fs::path base = std::getenv("DFM_TEST_FULL_DISK");
  PrepareOptions options = butterflies(base / "out", 10);
  options.shard_max_count = 100;
  EXPECT_EXIT(
      {
        ::signal(SIGXFSZ, SIG_IGN);
        rlimit limit{};  // a sample has a megabyte of text rows
        limit.rlim_cur = limit.rlim_max = 3 << 20;
        ::setrlimit(RLIMIT_FSIZE, &limit);
        try {
          run(options, quiet());
        } catch (const Error& error) {
          fmt::print(stderr, "{}\n", error.what());
          ::exit(static_cast<int>(error.code()));
        }
      },
      testing::ExitedWithCode(static_cast<int>(ExitCode::kResource)), "rank0-000000.tar.tmp");
  unsetenv("DFM_TEST_FULL_DISK");
  for (const auto& [name, bytes] : contents(base / "out")) {
    EXPECT_FALSE(name.ends_with(".tar") || name.ends_with(".tmp") || name == "dfm_dataset.json") << name;
  }
  const Report report = run(options, quiet());
  EXPECT_EQ(report.num_samples, 10);
  EXPECT_EQ(report.num_continued, 0);
}

TEST(PrepareBatches, SayHowToDoWithoutWhatCannotBeHad) {
  const test::TempFolder folder;
  make_media(folder / "media");
  ASSERT_EQ(setenv("HF_HUB_OFFLINE", "1", 1), 0);
  ASSERT_EQ(setenv("HF_HOME", (folder / "home").c_str(), 1), 0);
  PrepareOptions options = media_options(folder / "media", folder / "out");
  options.tokenizer.reset();
  const std::string advice = "--tokenizer builtin --text-encoder builtin";
  for (const auto& body :
       {std::function<void()>([&] { fetch(options); }), std::function<void()>([&] { run(options, quiet()); })}) {
    const std::string error = test::error_of(body);
    EXPECT_NE(error.find("nvidia/Cosmos-0.1-Tokenizer-CV4x8x8"), std::string::npos) << error;
    EXPECT_NE(error.find(advice), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  // The tutorial's data set, too.
  PrepareOptions tutorial;
  tutorial.output_dir = folder / "out";
  const std::string no_input = test::error_of([&] { fetch(tutorial); });
  EXPECT_NE(no_input.find("huggan/smithsonian_butterflies_subset"), std::string::npos) << no_input;
  EXPECT_NE(no_input.find(advice), std::string::npos) << no_input;
  EXPECT_FALSE(fs::exists(folder / "out"));
  unsetenv("HF_HUB_OFFLINE");
  unsetenv("HF_HOME");
}

}  // namespace
}  // namespace dfm::prepare
