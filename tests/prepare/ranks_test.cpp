// dfm prepare as several processes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <thread>

#include "dfm/data/dataset.h"
#include "dfm/formats/media.h"
#include "prepare/butterflies.h"
#include "prepare/fakes.h"
#include "support/errors.h"
#include "support/ranks.h"
#include "support/temp_folder.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;
using test::butterflies;
using test::contents;
using test::expect_same_files;
using test::launch_ranks;
using test::quiet;
using test::RankResult;
using test::run_ranks;

// Options and context of a rank: output folder, number of butterflies or an input folder.
PrepareOptions options_of(const std::string& output_dir, const std::string& input) {
  PrepareOptions options = butterflies(output_dir, 1);
  options.input = input;
  options.tokenizer = options.text_encoder = "builtin";
  return options;
}

RunContext context_of(comm::World& world) {
  RunContext context = quiet();
  context.world = {std::shared_ptr<void>(), &world};
  return context;
}

// To the first rank's report, which has to be about all samples, and a data set that is there for every rank.
RANK_CASE(prepare) {
  const Report report = run(options_of(args[0], args[1]), context_of(world));
  const auto dataset = data::Dataset::open(args[0]);
  EXPECT_EQ(report.folder, fs::path(args[0]));
  if (!world.is_first()) return;
  EXPECT_EQ(report.num_samples, static_cast<std::int64_t>(dataset->entries().size()));
  std::ofstream(args[2]) << describe(report) << "continued " << report.num_continued << "\n";
}

// One rank is killed after some samples; the others are slow enough to be in the middle, too.
RANK_CASE(prepare_and_be_killed) {
  RunContext context = context_of(world);
  const int victim = std::stoi(args[2]);
  const std::uint64_t after = std::stoull(args[3]);
  context.on_progress = [&](std::uint64_t done, std::uint64_t) {
    if (world.rank() == victim && done == after) ::raise(SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(world.rank() == victim ? 20 : 60));
  };
  run(options_of(args[0], args[1]), context);
}

RANK_CASE(prepare_and_fail) {
  RunContext context = context_of(world);
  PrepareOptions options = options_of(args[0], args[1]);
  if (args[2] == "other settings" && world.rank() == 1) options.short_side = 48;
  context.on_progress = [&](std::uint64_t done, std::uint64_t) {
    if (args[2] == "error" && world.rank() == 1 && done == 2) throw ResourceError("disk full");
  };
  run(options, context);
}

// Rank 1 takes much longer than a rank may wait for another in one operation, or hangs.
RAW_RANK_CASE(prepare_slowly) {
  const auto world =
      comm::World::join(comm::read_launch(), {.command = "prepare", .timeout = std::chrono::milliseconds(3500)});
  RunContext context = context_of(*world);
  context.on_progress = [&](std::uint64_t done, std::uint64_t) {
    if (world->rank() != 1) return;
    if (args[2] == "hang" && done == 2) std::this_thread::sleep_for(std::chrono::seconds(60));
    std::this_thread::sleep_for(std::chrono::milliseconds(900));
  };
  run(options_of(args[0], args[1]), context);
  world->leave();
  return 0;
}

// A text encoder that counts what it is asked for: into a file, when all is done.
RANK_CASE(prepare_with_fakes) {
  const auto tokenizer = std::make_shared<test::FakeTokenizer>(args[3] == "batches");
  const auto text = std::make_shared<test::FakeTextEncoder>();
  text->parameters = args[3] == "costly text" ? 10'000'000'000 : 0;
  RunContext context = context_of(world);
  context.tokenizer = tokenizer;
  context.text_encoder = text;
  std::uint64_t num_items = 0;
  context.on_progress = [&](std::uint64_t, std::uint64_t total) { num_items = total; };
  run(options_of(args[0], args[1]), context);
  std::ofstream(args[2] + "." + std::to_string(world.rank()))
      << text->captions().size() << " " << tokenizer->num_encoded() << " " << num_items;
}

struct FakeCounts {
  std::size_t captions = 0;
  std::int64_t pictures = 0, items = 0;
};
FakeCounts counts_of(const std::string& notes, int rank) {
  FakeCounts counts;
  std::ifstream(notes + "." + std::to_string(rank)) >> counts.captions >> counts.pictures >> counts.items;
  return counts;
}

// A signal reaches one rank alone.
RANK_CASE(prepare_and_stop) {
  const auto text = std::make_shared<test::FakeTextEncoder>();
  RunContext context = context_of(world);
  context.text_encoder = text;
  context.watch_signals = true;
  context.on_progress = [&](std::uint64_t done, std::uint64_t) {
    if (world.rank() == std::stoi(args[2]) && done == 5) ::raise(SIGTERM);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  };
  const Report report = run(options_of(args[0], args[1]), context);
  EXPECT_EQ(report.stopped_by, SIGTERM);
  if (world.is_first()) {
    EXPECT_NE(describe(report).find("stopped by SIGTERM: "), std::string::npos) << describe(report);
    EXPECT_GE(report.num_samples, 3);
  }
}

// Training on either is the same: keys in the same order, with the same bytes, whatever the shards.
void expect_same_samples(const fs::path& got_folder, const fs::path& want_folder) {
  const auto got = data::Dataset::open(got_folder), want = data::Dataset::open(want_folder);
  EXPECT_EQ(got->fingerprint(), want->fingerprint());
  EXPECT_EQ(to_json(got->card()), to_json(want->card()));
  ASSERT_EQ(got->entries().size(), want->entries().size());
  for (std::size_t i = 0; i < want->entries().size(); ++i) {
    const data::SampleEntry &a = got->entries()[i], &b = want->entries()[i];
    EXPECT_EQ(a.key, b.key);
    for (const auto& part : {&data::SampleEntry::json, &data::SampleEntry::pth, &data::SampleEntry::pickle}) {
      EXPECT_EQ((a.*part).size, (b.*part).size);
      EXPECT_EQ((a.*part).checksum, (b.*part).checksum);
      EXPECT_NE((a.*part).checksum, 0U);
    }
    const data::Sample x = got->read(i), y = want->read(i);  // read() checks the bytes against the checksums
    EXPECT_EQ(x.caption, y.caption);
    EXPECT_EQ(x.fps, y.fps);
    EXPECT_TRUE(at::equal(x.latent_CTHW, y.latent_CTHW)) << a.key;
    EXPECT_TRUE(at::equal(x.text_LE, y.text_LE)) << a.key;
  }
  EXPECT_FALSE(fs::exists(got_folder / ".dfm_prepare"));
}

std::vector<std::string> shards_of(const fs::path& folder) {
  std::vector<std::string> shards;
  for (const auto& [name, bytes] : contents(folder)) {
    if (name.ends_with(".tar")) shards.push_back(name);
    EXPECT_FALSE(name.ends_with(".tmp")) << name;
  }
  return shards;
}

TEST(PrepareRanks, GivesTheSameSamplesOnAnyNumberOfRanks) {
  const test::TempFolder folder;
  const std::string input = "synthetic:butterflies:13";
  run(options_of(folder / "1", input), quiet());
  for (const int num_ranks : {2, 3}) {
    const fs::path out = folder / std::to_string(num_ranks);
    const std::string notes = folder / (std::to_string(num_ranks) + ".txt");
    run_ranks(num_ranks, "prepare", {out, input, notes});
    if (HasFailure()) return;
    expect_same_samples(out, folder / "1");
    const std::string report = read_text_file(notes);
    EXPECT_NE(report.find("13 samples (7 pictures, 6 clips)"), std::string::npos) << report;
  }
  // A clip of 9 frames is 9 pictures' work: dealt by pixels, 6 clips and 7 pictures are 3 and 3 or 4.
  EXPECT_EQ(shards_of(folder / "2"),
            (std::vector<std::string>{"rank0-000000.tar", "rank0-000001.tar", "rank0-000002.tar", "rank1-000000.tar",
                                      "rank1-000001.tar"}));
  // Again: nothing to do, and the same run elsewhere gives the same files.
  const auto before = contents(folder / "3");
  run_ranks(2, "prepare", {folder / "3", input, folder / "again.txt"});
  EXPECT_TRUE(contents(folder / "3") == before);
  EXPECT_NE(read_text_file(folder / "again.txt").find("nothing to do"), std::string::npos);
  run_ranks(2, "prepare", {folder / "other", input, folder / "other.txt"});
  expect_same_files(folder / "other", folder / "2");
}

TEST(PrepareRanks, ReportWhatAllOfThemHaveSkipped) {
  const test::TempFolder folder;
  fs::create_directories(folder / "media");
  for (int i = 0; i < 9; ++i) {
    const fs::path path = folder.path() / "media" / fmt::format("{}.png", i);
    if (i % 4 == 1) {
      std::ofstream(path) << "no picture";
    } else {
      formats::write_png(path, at::full({40 + 20 * i, 50, 3}, 20 * i, at::kByte));
    }
    if (i % 3 != 0) std::ofstream(fs::path(path).replace_extension(".txt")) << "picture " << i;
  }
  const Report want = run(options_of(folder / "1", folder / "media"), quiet());
  EXPECT_EQ(want.skipped.size(), 2U);
  EXPECT_EQ(want.num_without_caption, 3);
  run_ranks(2, "prepare", {folder / "2", folder / "media", folder / "report.txt"});
  if (HasFailure()) return;
  expect_same_samples(folder / "2", folder / "1");
  const std::string report = read_text_file(folder / "report.txt");
  const std::size_t first = report.find("1.png"), second = report.find("5.png");
  EXPECT_LT(first, second) << report;  // both, in the order of the input
  EXPECT_NE(second, std::string::npos) << report;
  EXPECT_NE(report.find("3 samples without one"), std::string::npos) << report;
}

// Kills one of `num_ranks` and gives the shards that are left, with their bytes.
std::map<std::string, std::string> kill_a_rank(int num_ranks, const fs::path& out, const std::string& input, int victim,
                                               int after) {
  const std::vector<RankResult> results =
      launch_ranks(num_ranks, "prepare_and_be_killed", {out, input, std::to_string(victim), std::to_string(after)});
  for (int rank = 0; rank < num_ranks; ++rank) {
    const RankResult& result = results[static_cast<std::size_t>(rank)];
    EXPECT_EQ(result.exit_code == 128 + SIGKILL, rank == victim) << rank << ": " << result.output;
    EXPECT_NE(result.exit_code, 0) << rank << ": " << result.output;
  }
  EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", data::Dataset::open(out));
  std::map<std::string, std::string> shards = contents(out);
  std::erase_if(shards, [](const auto& file) { return !file.first.ends_with(".tar"); });
  return shards;
}

void expect_kept(const std::map<std::string, std::string>& shards, const fs::path& out) {
  const auto now = contents(out);
  for (const auto& [name, bytes] : shards) {
    ASSERT_TRUE(now.contains(name)) << name;
    EXPECT_TRUE(now.at(name) == bytes) << name << " has changed";
  }
}

TEST(PrepareRanks, ContinueAtAnotherNumberOfRanksAfterKills) {
  const test::TempFolder folder;
  const std::string input = "synthetic:butterflies:40";
  run(options_of(folder / "undisturbed", input), quiet());
  const fs::path out = folder / "killed";
  const auto of_three = kill_a_rank(3, out, input, 1, 7);
  EXPECT_TRUE(of_three.contains("rank1-000001.tar"));
  EXPECT_FALSE(of_three.contains("rank1-000002.tar"));
  const auto of_two = kill_a_rank(2, out, input, 0, 5);
  expect_kept(of_three, out);
  EXPECT_GT(of_two.size(), of_three.size());
  run_ranks(3, "prepare", {out, input, folder / "report.txt"});
  if (HasFailure()) return;
  expect_kept(of_two, out);
  expect_same_samples(out, folder / "undisturbed");
  // Three samples a shard, but for the last of each rank in each run.
  std::int64_t num_kept = 0;
  for (const auto& [name, bytes] : of_two) num_kept += (bytes.size() > 0 ? 3 : 0);
  EXPECT_NE(read_text_file(folder / "report.txt").find("continued " + std::to_string(num_kept) + "\n"),
            std::string::npos)
      << read_text_file(folder / "report.txt");

  // From several to one.
  const fs::path alone = folder / "alone";
  const auto left = kill_a_rank(2, alone, input, 1, 8);
  const Report report = run(options_of(alone, input), quiet());
  EXPECT_EQ(report.num_samples, 40);
  EXPECT_GE(report.num_continued, 6);
  expect_kept(left, alone);
  expect_same_samples(alone, folder / "undisturbed");
}

TEST(PrepareRanks, EncodeEachCaptionOnceForAllRanksOfAHost) {
  const test::TempFolder folder;
  const std::string input = "synthetic:butterflies:17", alone = folder / "alone";
  RunContext context = quiet();
  context.tokenizer = std::make_shared<test::FakeTokenizer>(false);
  const auto text = std::make_shared<test::FakeTextEncoder>();
  context.text_encoder = text;
  const Report report = run(options_of(alone, input), context);
  EXPECT_EQ(report.num_captions_encoded, static_cast<std::int64_t>(text->captions().size()));
  for (const std::string how : {"batches", "one by one"}) {
    const std::string out = folder / how, notes = folder / (how + " counts");
    run_ranks(2, "prepare_with_fakes", {out, input, notes, how});
    if (HasFailure()) return;
    expect_same_samples(out, alone);
    EXPECT_EQ(counts_of(notes, 0).captions, text->captions().size());
    EXPECT_EQ(counts_of(notes, 1).captions, 0U);
    EXPECT_EQ(counts_of(notes, 0).pictures + counts_of(notes, 1).pictures, 17);
    EXPECT_NEAR(static_cast<double>(counts_of(notes, 0).items), 8.5, 1);
  }
  // A rank that has more to do for the captions gets fewer pixels; here none.
  const std::string out = folder / "costly", notes = folder / "costly counts";
  run_ranks(2, "prepare_with_fakes", {out, input, notes, "costly text"});
  if (HasFailure()) return;
  expect_same_samples(out, alone);
  EXPECT_EQ(counts_of(notes, 0).captions, text->captions().size());
  EXPECT_EQ(counts_of(notes, 0).pictures, 0);
  EXPECT_EQ(counts_of(notes, 1).pictures, 17);
}

TEST(PrepareRanks, StopTogetherAndContinue) {
  const test::TempFolder folder;
  const std::string input = "synthetic:butterflies:60";
  RunContext context = quiet();
  context.text_encoder = std::make_shared<test::FakeTextEncoder>();
  run(options_of(folder / "undisturbed", input), context);
  for (const std::string rank : {"0", "1"}) {
    const fs::path out = folder / ("stopped" + rank);
    run_ranks(2, "prepare_and_stop", {out, input, rank});
    if (HasFailure()) return;
    EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", data::Dataset::open(out));
    for (const std::string& shard : shards_of(out)) EXPECT_NE(shard, "rank0-000010.tar");
    context.text_encoder = std::make_shared<test::FakeTextEncoder>();
    const Report report = run(options_of(out, input), context);
    EXPECT_EQ(report.num_samples, 60);
    EXPECT_GE(report.num_continued, 3);
    EXPECT_LT(report.num_continued, 60);
    expect_same_samples(out, folder / "undisturbed");
  }
}

TEST(PrepareRanks, EndTogetherWithOneThatFails) {
  const test::TempFolder folder;
  const std::string input = "synthetic:butterflies:12";
  for (const RankResult& result : launch_ranks(2, "prepare_and_fail", {folder / "a", input, "error"})) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kResource)) << result.output;
  }
  EXPECT_DFM_ERROR(ExitCode::kData, "unfinished", data::Dataset::open(folder / "a"));
  std::string outputs;
  for (const RankResult& result : launch_ranks(2, "prepare_and_fail", {folder / "b", input, "other settings"})) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kComm)) << result.output;
    outputs += result.output;
  }
  EXPECT_NE(outputs.find("short_side 48"), std::string::npos) << outputs;
  EXPECT_FALSE(fs::exists(folder / "b"));
}

TEST(PrepareRanks, WaitForOneThatGetsOnAndNotForOneThatHangs) {
  const test::TempFolder folder;
  // Seven samples on rank 1 at 0.9 s each: rank 0 waits for 6 s, with a timeout of 3.5 s.
  const std::string input = "synthetic:butterflies:14";
  run_ranks(2, "prepare_slowly", {folder / "slow", input, "no"});
  EXPECT_EQ(data::Dataset::open(folder / "slow")->entries().size(), 14U);
  std::string outputs;
  const auto start = std::chrono::steady_clock::now();
  for (const RankResult& result : launch_ranks(2, "prepare_slowly", {folder / "hung", input, "hang"})) {
    EXPECT_EQ(result.exit_code, static_cast<int>(ExitCode::kComm)) << result.output;
    outputs += result.output;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(40));
  EXPECT_NE(outputs.find("rank 1"), std::string::npos) << outputs;
}

}  // namespace
}  // namespace dfm::prepare
