#include "dfm/data/loader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <thread>

#include "data/small_dataset.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::data {
namespace {

// A data set in memory: reading takes uneven time; one sample may be bad, one may fail.
class FakeDataset : public Dataset {
 public:
  explicit FakeDataset(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      SampleEntry& entry = entries_.emplace_back();
      entry.key = sample_key(i);
      entry.frames = 1 + static_cast<std::int64_t>(i % 3);
      entry.height = 4, entry.width = 2 + 2 * static_cast<std::int64_t>(i % 5);
    }
  }
  [[nodiscard]] const std::filesystem::path& folder() const override { return folder_; }
  [[nodiscard]] const std::vector<SampleEntry>& entries() const override { return entries_; }
  [[nodiscard]] const DatasetCard& card() const override { return card_; }
  [[nodiscard]] std::uint64_t fingerprint() const override { return 0; }
  [[nodiscard]] Sample read(std::size_t index) const override {
    std::this_thread::sleep_for(std::chrono::microseconds(index * 977 % 1500));
    if (index == failing) throw DataError("sample {} is damaged", index);
    Sample sample;
    if (index == bad) {
      sample.problem = "bad";
      return sample;
    }
    sample.caption = std::to_string(index);
    sample.latent_CTHW = at::full({1, 1, 1, 1}, static_cast<double>(index));
    return sample;
  }
  std::size_t bad = ~std::size_t{0}, failing = ~std::size_t{0};
  std::vector<SampleEntry> entries_;

 private:
  std::filesystem::path folder_ = "fake";
  DatasetCard card_;
};

std::string describe(const LoadedStep& step) {
  std::string text = std::to_string(step.first_position) + ":";
  for (const LoadedSample& loaded : step.samples) {
    text += " " + std::to_string(loaded.position) + "=" + std::to_string(loaded.index) + loaded.sample.caption;
  }
  for (const Row& row : step.rows) {
    text += " [";
    for (const std::int64_t member : row.members) text += std::to_string(member) + ",";
    text += "]" + std::to_string(row.num_tokens) + "/" + std::to_string(row.padded_tokens);
  }
  return text;
}

TEST(StepLoader, DoesNotDependOnTheNumberOfWorkers) {
  std::vector<std::string> want;
  for (const std::int64_t num_workers : {1, 2, 5}) {
    StepLoader loader(
        std::make_shared<FakeDataset>(23),
        {.limits = {.max_tokens = 32, .token_multiple = 4}, .global_batch_size = 6, .num_workers = num_workers});
    std::vector<std::string> steps;
    for (int step = 0; step < 8; ++step) steps.push_back(describe(loader.next()));
    if (want.empty()) want = steps;
    EXPECT_EQ(steps, want) << num_workers;
  }
}

TEST(StepLoader, ContinuesAtAnyPosition) {
  const LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 5};
  StepLoader from_start(std::make_shared<FakeDataset>(12), options);
  from_start.next(), from_start.next();
  LoaderOptions later = options;
  later.first_position = 10;
  StepLoader continued(std::make_shared<FakeDataset>(12), later);
  for (int step = 0; step < 3; ++step) EXPECT_EQ(describe(continued.next()), describe(from_start.next()));
}

TEST(StepLoader, FollowsTheStreamAndReadsEachSampleOnceAnEpoch) {
  StepLoader loader(std::make_shared<FakeDataset>(12),
                    {.seed = 3, .limits = {.max_tokens = 32}, .global_batch_size = 4});
  std::vector<int> seen(12, 0);
  for (int step = 0; step < 3; ++step) {
    const LoadedStep loaded = loader.next();
    EXPECT_EQ(loaded.first_position, step * 4);
    for (std::size_t i = 0; i < 4; ++i) {
      const LoadedSample& sample = loaded.samples[i];
      EXPECT_EQ(sample.position, step * 4 + static_cast<std::int64_t>(i));
      EXPECT_EQ(sample.index, sample_at(3, static_cast<std::uint64_t>(sample.position), 12));
      EXPECT_EQ(sample.sample.caption, std::to_string(sample.index));
      ++seen[sample.index];
    }
  }
  EXPECT_EQ(seen, std::vector<int>(12, 1));
}

TEST(StepLoader, KeepsABadSampleOutOfTheRows) {
  const auto dataset = std::make_shared<FakeDataset>(6);
  const LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 6};
  const LoadedStep whole = StepLoader(dataset, options).next();
  dataset->bad = 4;
  const LoadedStep step = StepLoader(dataset, options).next();
  EXPECT_EQ(step.num_bad, 1);
  ASSERT_EQ(step.samples.size(), 6U);
  std::size_t num_members = 0;
  for (const Row& row : step.rows) {
    std::int64_t sum = 0;
    for (const std::int64_t member : row.members) {
      const LoadedSample& sample = step.samples[static_cast<std::size_t>(member)];
      EXPECT_TRUE(sample.sample.problem.empty());
      sum += num_tokens(dataset->entries()[sample.index], 2, 1);
      ++num_members;
    }
    EXPECT_EQ(sum, row.num_tokens);
    EXPECT_GT(row.num_tokens, 0);
  }
  EXPECT_EQ(num_members, 5U);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(step.samples[i].index, whole.samples[i].index);
}

// The shares of all data ranks, put together by position.
struct WholeStep {
  std::map<std::int64_t, std::size_t> index_at;  // by position
  std::vector<double> tokens;                    // by rank
};

WholeStep put_together(std::vector<LoadedStep> shares, const Dataset& dataset) {
  WholeStep whole;
  for (const LoadedStep& share : shares) {
    EXPECT_EQ(share.first_position, shares[0].first_position);
    EXPECT_EQ(share.num_positions, shares[0].num_positions);
    std::set<std::int64_t> members;
    double tokens = 0;
    for (const Row& row : share.rows) {
      std::int64_t sum = 0;
      for (const std::int64_t member : row.members) {
        EXPECT_TRUE(members.insert(member).second);
        sum += num_tokens(dataset.entries()[share.samples.at(static_cast<std::size_t>(member)).index], 2, 1);
      }
      EXPECT_EQ(sum, row.num_tokens);
      tokens += static_cast<double>(sum);
    }
    EXPECT_EQ(members.size(), share.samples.size());  // each sample of the rank lies in one row
    whole.tokens.push_back(tokens);
    std::int64_t last = -1;
    for (const LoadedSample& loaded : share.samples) {
      EXPECT_GT(loaded.position, last);
      last = loaded.position;
      EXPECT_EQ(loaded.sample.caption, std::to_string(loaded.index));
      EXPECT_TRUE(whole.index_at.emplace(loaded.position, loaded.index).second) << loaded.position;
    }
  }
  return whole;
}

TEST(StepLoader, DealsTheStepToDataRanks) {
  for (const std::int64_t num_ranks : {2, 3, 7}) {
    const auto dataset = std::make_shared<FakeDataset>(23);
    const LoaderOptions options{.limits = {.max_tokens = 32, .token_multiple = 4}, .global_batch_size = 6};
    StepLoader alone(dataset, options);
    std::vector<std::unique_ptr<StepLoader>> loaders;
    for (std::int64_t rank = 0; rank < num_ranks; ++rank) {
      LoaderOptions of_rank = options;
      of_rank.data_rank = rank, of_rank.num_data_ranks = num_ranks;
      of_rank.num_workers = 1 + rank % 3;
      loaders.push_back(std::make_unique<StepLoader>(dataset, of_rank));
    }
    for (std::int64_t step = 0; step < 8; ++step) {
      std::vector<LoadedStep> shares(loaders.size());
      for (std::size_t i = 0; i < loaders.size(); ++i) {  // the order in which ranks ask does not matter
        const std::size_t rank = (i + static_cast<std::size_t>(step)) % loaders.size();
        shares[rank] = loaders[rank]->next();
      }
      const WholeStep whole = put_together(std::move(shares), *dataset);
      const LoadedStep want = alone.next();
      EXPECT_EQ(want.num_positions, 6);
      ASSERT_EQ(whole.index_at.size(), want.samples.size());
      for (const LoadedSample& loaded : want.samples) EXPECT_EQ(whole.index_at.at(loaded.position), loaded.index);
      EXPECT_EQ(want.first_position, step * 6);
    }
  }
}

TEST(StepLoader, ReadsOnlyTheSamplesOfItsRank) {
  const auto dataset = std::make_shared<FakeDataset>(12);
  LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 12};
  options.num_data_ranks = 3;
  const LoadedStep share = StepLoader(dataset, options).next();
  std::set<std::size_t> mine;
  for (const LoadedSample& loaded : share.samples) mine.insert(loaded.index);
  for (std::size_t index = 0; index < 12; ++index) {
    if (mine.contains(index)) continue;
    const auto damaged = std::make_shared<FakeDataset>(12);
    damaged->failing = index;
    EXPECT_EQ(describe(StepLoader(damaged, options).next()), describe(share)) << index;
  }
}

TEST(StepLoader, DealsByTheCostThatItIsGiven) {
  const auto dataset = std::make_shared<FakeDataset>(30);
  const auto shares = [&](const PackCost& cost) {
    std::string text;
    for (std::int64_t rank = 0; rank < 2; ++rank) {
      LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 9};
      options.data_rank = rank, options.num_data_ranks = 2, options.cost = cost;
      text += describe(StepLoader(dataset, options).next()) + "\n";
    }
    return text;
  };
  EXPECT_NE(shares({.per_token = 1}), shares({.per_token = 0, .per_pair = 1}));
}

TEST(StepLoader, AgreesWithThoseThatReadTheSameSamples) {
  const auto dataset = std::make_shared<FakeDataset>(6);
  LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 6};
  dataset->bad = sample_at(options.seed, 1, 6);
  std::vector<std::int64_t> asked;
  options.agree = [&](std::vector<std::int64_t>& is_bad) {
    asked = is_bad;
    is_bad = {0, 0, 0, 1, 0, 0};  // position 1 is good there, and 3 bad
  };
  const LoadedStep step = StepLoader(dataset, options).next();
  EXPECT_EQ(asked, (std::vector<std::int64_t>{0, 1, 0, 0, 0, 0}));
  EXPECT_EQ(step.num_bad, 2);
  std::set<std::int64_t> members;
  for (const Row& row : step.rows) members.insert(row.members.begin(), row.members.end());
  EXPECT_EQ(members, (std::set<std::int64_t>{0, 2, 4, 5}));
  EXPECT_NE(step.samples[3].sample.problem.find("another rank"), std::string::npos);
  EXPECT_FALSE(step.samples[3].sample.latent_CTHW.defined());
}

TEST(StepLoader, GivesARankWithoutSamplesAnEmptyStep) {
  LoaderOptions options{.limits = {.max_tokens = 32}, .global_batch_size = 2};
  options.data_rank = 3, options.num_data_ranks = 4;
  options.agree = [](std::vector<std::int64_t>&) { ADD_FAILURE() << "asked without samples"; };
  StepLoader loader(std::make_shared<FakeDataset>(6), options);
  for (std::int64_t step = 0; step < 3; ++step) {
    const LoadedStep loaded = loader.next();
    EXPECT_TRUE(loaded.samples.empty());
    EXPECT_TRUE(loaded.rows.empty());
    EXPECT_EQ(loaded.first_position, 2 * step);
    EXPECT_EQ(loaded.num_positions, 2);
  }
  options.data_rank = 4;
  EXPECT_DFM_ERROR(ExitCode::kInternal, "data rank 4 of 4", StepLoader(std::make_shared<FakeDataset>(6), options));
}

TEST(StepLoader, TakesSidesThatCannotBePatchedAsBad) {
  const auto dataset = std::make_shared<FakeDataset>(3);
  dataset->entries_[1].height = 3;
  const LoadedStep step = StepLoader(dataset, {.limits = {.max_tokens = 32}, .global_batch_size = 3}).next();
  EXPECT_EQ(step.num_bad, 1);
  for (const LoadedSample& loaded : step.samples) {
    EXPECT_EQ(loaded.index == 1,
              loaded.sample.problem.find("want frames a multiple of 1 and sides of 2") != std::string::npos);
  }
}

TEST(StepLoader, ThrowsAWorkersErrorInItsStep) {
  const auto dataset = std::make_shared<FakeDataset>(6);
  dataset->failing = sample_at(1234, 4, 6);
  StepLoader loader(dataset, {.limits = {.max_tokens = 32}, .global_batch_size = 3});
  EXPECT_EQ(loader.next().samples.size(), 3U);
  EXPECT_DFM_ERROR(ExitCode::kData, "is damaged", loader.next());
}

TEST(StepLoader, RefusesASampleLongerThanARow) {
  EXPECT_DFM_ERROR(ExitCode::kData,
                   "sample 000014: got 30 tokens, want at most 29 (fake); hint: dataset.task_encoder_seq_length=30",
                   StepLoader(std::make_shared<FakeDataset>(15), {.limits = {.max_tokens = 29}}));
}

TEST(StepLoader, ReadsFromDisk) {
  const test::TempFolder folder;
  test::write_small_dataset(folder.path(), 7, 3);
  StepLoader loader(Dataset::open(folder.path()), {.limits = {.max_tokens = 64}, .global_batch_size = 10});
  const LoadedStep step = loader.next();
  for (const LoadedSample& loaded : step.samples) {
    EXPECT_TRUE(at::equal(loaded.sample.latent_CTHW.to(at::kFloat),
                          test::small_latent(static_cast<std::int64_t>(loaded.index))));
  }
}

}  // namespace
}  // namespace dfm::data
