// The stages between the source and the shards.
#include "prepare/stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <set>

#include "prepare/fakes.h"
#include "prepare/text_files.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::prepare {
namespace {

using test::FakeSource;
using test::FakeTextEncoder;
using test::FakeTokenizer;

std::vector<std::vector<Group>> add_all(Grouper& grouper, const std::vector<std::array<std::int64_t, 3>>& sizes) {
  std::vector<std::vector<Group>> complete;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    complete.push_back(grouper.add(i, sizes[i][0], sizes[i][1], sizes[i][2]));
  }
  return complete;
}

TEST(Grouper, FillsGroupsOfEqualSizeUpToThePixelBudget) {
  Grouper grouper({.max_pixels = 3 * 256});
  const auto complete =
      add_all(grouper, {{1, 16, 16}, {1, 16, 16}, {1, 16, 8}, {1, 16, 16}, {1, 16, 8}, {1, 8, 16}, {1, 16, 16}});
  for (const std::size_t i : {0, 1, 2, 4, 5, 6}) EXPECT_TRUE(complete[i].empty()) << i;
  EXPECT_EQ(complete[3], (std::vector<Group>{{0, 1, 3}}));
  EXPECT_EQ(grouper.finish(), (std::vector<Group>{{2, 4}, {5}, {6}}));  // by age, turned pictures apart
  EXPECT_EQ(grouper.num_waiting_pixels(), 0);
}

TEST(Grouper, LeavesClipsAndLargePicturesAlone) {
  Grouper grouper({.max_pixels = 1000});
  const auto complete = add_all(grouper, {{5, 8, 8}, {1, 24, 24}, {1, 16, 16}, {1, 40, 40}});
  EXPECT_EQ(complete[0], (std::vector<Group>{{0}}));
  EXPECT_EQ(complete[1], (std::vector<Group>{{1}}));  // two would be more than 1000
  EXPECT_TRUE(complete[2].empty());
  EXPECT_EQ(complete[3], (std::vector<Group>{{3}}));
}

TEST(Grouper, LetsNothingWaitForLong) {
  Grouper grouper({.max_pixels = 1 << 20, .max_lag = 3});
  const auto complete = add_all(grouper, {{1, 8, 8}, {1, 16, 16}, {1, 8, 8}, {5, 8, 8}, {1, 16, 16}, {1, 24, 24}});
  EXPECT_EQ(complete[3], (std::vector<Group>{{3}, {0, 2}}));
  EXPECT_EQ(complete[4], (std::vector<Group>{{1, 4}}));
  EXPECT_EQ(grouper.finish(), (std::vector<Group>{{5}}));
}

TEST(Grouper, BoundsThePixelsThatWait) {
  Grouper grouper({.max_pixels = 1 << 20, .max_waiting_pixels = 600});
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < 40; ++i) {
    grouper.add(static_cast<std::uint64_t>(i), 1, 8, 8 * (1 + i % 5));
    most = std::max(most, grouper.num_waiting_pixels());
  }
  EXPECT_LE(most, 600);
  EXPECT_GT(most, 200);
}

TEST(MemoryBudget, HoldsBackAllButTheLowestNumber) {
  MemoryBudget budget(100);
  budget.acquire(1, 80);
  std::atomic<bool> has_two = false;
  std::thread two([&] {
    budget.acquire(2, 30);
    has_two = true;
  });
  budget.acquire(0, 50);  // the lowest: over the limit, but at once
  EXPECT_EQ(budget.used(), 130U);
  EXPECT_FALSE(has_two);
  budget.release(0);
  EXPECT_FALSE(has_two);
  budget.release(1);
  two.join();
  EXPECT_EQ(budget.used(), 30U);
  budget.release(7);  // holds nothing
  EXPECT_EQ(budget.used(), 30U);
}

struct Rig {
  std::shared_ptr<FakeTokenizer> tokenizer;
  std::shared_ptr<FakeTextEncoder> text = std::make_shared<FakeTextEncoder>();
  Encoders encoders;
  data::LoadLimits limits;
  std::vector<std::uint64_t> items;
  StreamOptions options;

  Rig(bool gains, std::uint64_t num_items) : tokenizer(std::make_shared<FakeTokenizer>(gains)) {
    encoders = {.tokenizer = tokenizer, .text = text, .turn = {}};
    limits.short_side = 16;
    for (std::uint64_t i = 0; i < num_items; ++i) items.push_back(i);
    options.num_workers = 3;
    options.groups = {.max_pixels = 4 * 256, .max_lag = 8, .max_waiting_pixels = 4096};
  }
};

std::vector<FakeSource::Item> pictures(std::size_t count) {
  std::vector<FakeSource::Item> items(count);
  for (std::size_t i = 0; i < count; ++i) {
    items[i].width = i % 3 == 0 ? 32 : 16;
    items[i].caption = "picture " + std::to_string(i % 7);
  }
  return items;
}

std::vector<std::string> drain(ResultStream& stream) {
  std::vector<std::string> sources;
  while (const std::optional<Result> result = stream.next()) {
    sources.push_back(result->parts ? result->parts->json.substr(result->parts->json.find("\"source\"")) : "skipped");
  }
  return sources;
}

TEST(Stream, GivesBatchesInOrderThatDependOnTheListAlone) {
  std::vector<FakeTokenizer::Batch> batches;
  std::vector<std::string> order;
  for (const int num_workers : {1, 5}) {
    FakeSource source(pictures(40));
    source.on_load = [&](std::size_t index) {  // the first are the slowest
      if (num_workers > 1 && index < 4) std::this_thread::sleep_for(std::chrono::milliseconds(30 - 5 * index));
    };
    Rig rig(true, 40);
    rig.options.num_workers = num_workers;
    TextCache texts(*rig.text);
    const auto stream = batched(source, rig.limits, rig.items, rig.encoders, texts, rig.options);
    const std::vector<std::string> sources = drain(*stream);
    ASSERT_EQ(sources.size(), 40U);
    for (std::size_t i = 0; i < 40; ++i) {
      EXPECT_NE(sources[i].find(fmt::format("\"item {}\"", i)), std::string::npos) << sources[i];
    }
    if (batches.empty()) batches = rig.tokenizer->batches(), order = sources;
    EXPECT_EQ(rig.tokenizer->batches(), batches);
    EXPECT_EQ(sources, order);
    EXPECT_EQ(rig.tokenizer->num_encoded(), 40);
    EXPECT_EQ(rig.text->captions().size(), 7U);  // each once
  }
  EXPECT_LT(batches.size(), 16U);
  for (const auto& batch : batches) EXPECT_LE(batch.size * batch.height * batch.width, 4 * 256);
}

TEST(Stream, BoundsWhatIsInFlight) {
  constexpr std::uint64_t kItems = 120;
  std::vector<FakeSource::Item> items(kItems);
  for (auto& item : items) item = {.frames = 5, .height = 64, .width = 64, .caption = "clip"};
  FakeSource source(items);
  Rig rig(true, kItems);
  std::atomic<std::int64_t> num_loaded = 0, num_encoded = 0, most_waiting = 0, most_latents = 0, num_taken = 0;
  source.on_load = [&](std::size_t) {
    const std::int64_t waiting = ++num_loaded - num_encoded;
    if (waiting > most_waiting) most_waiting = waiting;
  };
  rig.tokenizer->on_encode = [&](const at::Tensor&) {
    const std::int64_t latents = ++num_encoded - num_taken;
    if (latents > most_latents) most_latents = latents;
  };
  rig.options.most_loaded_bytes = 4 * 5 * 64 * 64 * 3;  // four clips
  rig.options.most_latent_bytes = 20 * 8192;            // twenty latents
  TextCache texts(*rig.text);
  const auto stream = batched(source, rig.limits, rig.items, rig.encoders, texts, rig.options);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // the stages run ahead as far as they may
  while (stream->next()) {
    ++num_taken;
    if (num_taken % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(num_taken, static_cast<std::int64_t>(kItems));
  EXPECT_LE(most_waiting, 4 + 3 + 2);  // the budget, the workers' own, the one being encoded and the one after
  // On the shelf; and what the finishers have or have done (8 are their window).
  EXPECT_LE(most_latents, 20 + 8 + 3);
}

TEST(Stream, EncodesPixelsWhileCaptionsAreNotThere) {
  const test::TempFolder folder;
  const RunState state(folder / "out", {{"a", "b"}});
  FakeSource source(pictures(30));
  Rig rig(true, 30);
  std::mutex mutex;
  std::condition_variable changed;
  std::int64_t num_encoded = 0;
  bool is_ahead = false;
  rig.tokenizer->on_encode = [&](const at::Tensor&) {
    const std::lock_guard lock(mutex);
    ++num_encoded;
    changed.notify_all();
  };
  rig.text->on_encode = [&](const auto&) {
    std::unique_lock lock(mutex);
    is_ahead = changed.wait_for(lock, std::chrono::seconds(20), [&] { return num_encoded == 30; });
  };
  TextFiles texts(source, state, rig.text.get(), {.name = "run-t", .shares = {rig.items}}, [] { return false; });
  const auto stream = batched(source, rig.limits, rig.items, rig.encoders, texts, rig.options);
  EXPECT_EQ(drain(*stream).size(), 30U);
  EXPECT_TRUE(is_ahead);
  ASSERT_EQ(rig.text->calls().size(), 1U);  // many at once
  EXPECT_EQ(rig.text->captions().size(), 7U);
  EXPECT_EQ(texts.encoded().captions, 7);
  EXPECT_EQ(texts.encoded().rows, 7 * 10);
}

TEST(Stream, SkipsWhatATokenizerRefusesAndKeepsTheRestOfItsBatch) {
  FakeSource source(std::vector<FakeSource::Item>(10));
  Rig rig(true, 10);
  rig.options.groups.max_pixels = 10 * 256;
  rig.tokenizer->on_encode = [](const at::Tensor& pixels) {
    if (pixels.max().item<float>() == static_cast<float>(4 / 127.5 - 1)) throw DataError("a picture it does not like");
  };
  TextCache texts(*rig.text);
  const auto stream = batched(source, rig.limits, rig.items, rig.encoders, texts, rig.options);
  for (int i = 0; i < 10; ++i) {
    const std::optional<Result> result = stream->next();
    ASSERT_TRUE(result.has_value());
    EXPECT_EQ(result->parts.has_value(), i != 4) << i;
    EXPECT_EQ(result->skipped.reason, i == 4 ? "a picture it does not like" : "");
  }
}

TEST(Stream, EndsWithTheErrorOfAnyStageAndInTheMiddle) {
  for (const std::string stage : {"load", "encode", "text", "none"}) {
    FakeSource source(pictures(60));
    Rig rig(true, 60);
    source.on_load = [&](std::size_t index) {
      if (stage == "load" && index == 20) throw ResourceError("load");
    };
    rig.tokenizer->on_encode = [&](const at::Tensor&) {
      if (stage == "encode" && rig.tokenizer->batches().size() > 3) throw ResourceError("encode");
    };
    rig.text->on_encode = [&](const auto& captions) {
      if (stage == "text" && captions[0] == "picture 5") throw ResourceError("text");
    };
    TextCache texts(*rig.text);
    const auto stream = batched(source, rig.limits, rig.items, rig.encoders, texts, rig.options);
    if (stage == "none") {
      EXPECT_TRUE(stream->next().has_value());
      continue;  // destroyed while everything is under way
    }
    EXPECT_DFM_ERROR(ExitCode::kResource, stage, drain(*stream));
  }
}

class TextFilesTest : public testing::Test {
 protected:
  TextFilesTest() : state_(folder_ / "out", {{"a", "b"}}), source_(pictures(50)) {}
  // Items of two ranks: even and odd numbers.
  TextFilesOptions options(std::size_t own_share) const {
    TextFilesOptions options{.name = "run-t", .shares = {{}, {}}, .own_share = own_share, .chunk_items = 8};
    for (std::uint64_t i = 0; i < 50; ++i) options.shares[i % 2].push_back(i);
    return options;
  }
  const test::TempFolder folder_;
  const RunState state_;
  FakeSource source_;
  FakeTextEncoder encoder_;
};

TEST_F(TextFilesTest, ServeTheRanksOfAHostAndEncodeEachCaptionOnce) {
  TextFiles other(source_, state_, nullptr, options(1), [] { return false; });
  TextFiles leader(source_, state_, &encoder_, options(0), [] { return false; });
  EXPECT_EQ(leader.num_chunks(), 7U);
  for (std::uint64_t i = 0; i < 25; ++i) {
    for (TextFiles* texts : {&leader, &other}) {
      const std::string caption = source_.item(2 * i + (texts == &other ? 1 : 0)).caption.value();
      const at::Tensor rows = texts->rows(i, caption);
      EXPECT_EQ(rows.scalar_type(), at::kBFloat16);
      EXPECT_TRUE(at::equal(rows, FakeTextEncoder().encode({caption})[0].to(at::kBFloat16)));
    }
  }
  leader.finish();
  EXPECT_EQ(encoder_.captions().size(), 7U);
  EXPECT_EQ(leader.encoded().captions, 7);
  EXPECT_EQ(other.encoded().captions, 0);
  EXPECT_DFM_ERROR(ExitCode::kData, "caption 'another'", leader.rows(3, "another"));
}

TEST_F(TextFilesTest, GiveUpOnARankThatDoesNotWrite) {
  TextFilesOptions impatient = options(1);
  impatient.patience = std::chrono::milliseconds(50);
  TextFiles texts(source_, state_, nullptr, impatient, [] { return false; });
  EXPECT_DFM_ERROR(ExitCode::kComm, "want run-t-000000 (0 of 7 so far)", texts.rows(0, "x"));
  TextFiles stopped(source_, state_, nullptr, options(1), [] { return true; });
  EXPECT_THROW(stopped.rows(0, "x"), Stopped);
}

TEST_F(TextFilesTest, CountPatienceFromTheStartOfAWait) {
  TextFilesOptions impatient = options(1);
  impatient.patience = std::chrono::milliseconds(500);
  TextFiles texts(source_, state_, nullptr, impatient, [&] {  // asked while waiting
    TextFiles(source_, state_, &encoder_, options(0), [] { return false; }).finish();
    return false;
  });
  std::this_thread::sleep_for(2 * impatient.patience);  // pixels are being encoded
  EXPECT_EQ(texts.rows(0, source_.item(1).caption.value()).size(1), 6);
}

TEST_F(TextFilesTest, SayThatTheTextEncoderIsOutOfMemory) {
  encoder_.on_encode = [](const auto&) { TORCH_CHECK_WITH(OutOfMemoryError, false, "no room"); };
  TextFiles failing(source_, state_, &encoder_, options(0), [] { return false; });
  EXPECT_DFM_ERROR(ExitCode::kResource, "fake text encoder", failing.rows(0, "x"));
  TextCache cache(encoder_);
  EXPECT_DFM_ERROR(ExitCode::kResource, "hint: --text-encoder-offload", cache.rows(0, "x"));
}

TEST_F(TextFilesTest, PassOnTheEncodersErrorAndRefuseDamage) {
  encoder_.on_encode = [](const auto&) { throw DataError("weights gone"); };
  TextFiles failing(source_, state_, &encoder_, options(0), [] { return false; });
  EXPECT_DFM_ERROR(ExitCode::kData, "weights gone", failing.rows(0, "x"));
  EXPECT_DFM_ERROR(ExitCode::kData, "weights gone", failing.finish());
  state_.write("run-t-000000", std::string(24, '\xff') + "rest");
  TextFiles texts(source_, state_, nullptr, options(1), [] { return false; });
  EXPECT_DFM_ERROR(ExitCode::kData, "damaged file of encoded captions", texts.rows(0, "x"));
}

}  // namespace
}  // namespace dfm::prepare
