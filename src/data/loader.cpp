#include "dfm/data/loader.h"

#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>

#include "dfm/base/error.h"
#include "dfm/data/latent_scale.h"
#include "dfm/data/ordered_work.h"

namespace dfm::data {
namespace {

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

// Sizes that cannot be cut into patches; "" when they can.
std::string patch_problem(const SampleEntry& entry, std::int64_t patch_spatial, std::int64_t patch_temporal) {
  if (entry.height % patch_spatial == 0 && entry.width % patch_spatial == 0 && entry.frames % patch_temporal == 0) {
    return "";
  }
  return fmt::format("sample {}: got a latent of {}x{}x{}, want frames a multiple of {} and sides of {}", entry.key,
                     entry.frames, entry.height, entry.width, patch_temporal, patch_spatial);
}

}  // namespace

std::int64_t num_tokens(const SampleEntry& entry, std::int64_t patch_spatial, std::int64_t patch_temporal) {
  return std::max<std::int64_t>(
      1, entry.frames / patch_temporal * (entry.height / patch_spatial) * (entry.width / patch_spatial));
}

namespace {

// What this rank does in a step, known from the index before anything is read.
struct StepShare {
  std::vector<std::int64_t> members;  // positions relative to the step's first, ascending: LoadedStep::samples
  std::vector<std::int64_t> lengths;  // tokens of the members
  std::vector<Row> rows;              // of indices into `members`
};

}  // namespace

struct StepLoader::State {
  State(std::shared_ptr<const Dataset> opened, const LoaderOptions& given)
      : dataset(std::move(opened)),
        options(given),
        scale(dataset->card()),
        position(given.first_position),
        work(unsigned_of(given.first_position), OrderedWork<Loaded>::kEndless,
             unsigned_of(given.global_batch_size * std::max<std::int64_t>(1, given.steps_ahead))),
        threads(given.num_workers, work, [this](std::uint64_t at) { return load(at); }) {}

  // Nothing: a sample of another rank.
  using Loaded = std::optional<LoadedSample>;

  [[nodiscard]] Loaded load(std::uint64_t at) {
    const c10::ParallelGuard serial(true);  // the cores belong to training
    const std::int64_t offset = static_cast<std::int64_t>(at) - options.first_position;
    const std::int64_t in_step = offset % options.global_batch_size;
    const std::shared_ptr<const StepShare> share = share_of(static_cast<std::int64_t>(at) - in_step);
    if (!std::binary_search(share->members.begin(), share->members.end(), in_step)) return std::nullopt;
    LoadedSample loaded;
    loaded.position = static_cast<std::int64_t>(at);
    loaded.index = index_at(loaded.position);
    loaded.sample = dataset->read(loaded.index);
    if (loaded.sample.problem.empty()) {
      loaded.sample.problem =
          patch_problem(dataset->entries()[loaded.index], options.patch_spatial, options.patch_temporal);
      if (!loaded.sample.problem.empty()) loaded.sample.latent_CTHW.reset(), loaded.sample.text_LE.reset();
    }
    if (loaded.sample.problem.empty()) loaded.sample.latent_CTHW = scale.normalise(loaded.sample.latent_CTHW);
    return loaded;
  }

  [[nodiscard]] std::size_t index_at(std::int64_t at) const { return dataset->index_at(options.seed, unsigned_of(at)); }

  // Thread safe; made by the first that asks. `first`: the step's first position.
  std::shared_ptr<const StepShare> share_of(std::int64_t first) {
    const std::lock_guard lock(shares_mutex);
    std::shared_ptr<const StepShare>& share = shares[first];
    if (!share) share = std::make_shared<const StepShare>(plan_share(first));
    return share;
  }

  [[nodiscard]] StepShare plan_share(std::int64_t first) const {
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = 0; i < options.global_batch_size; ++i) {
      lengths.push_back(
          num_tokens(dataset->entries()[index_at(first + i)], options.patch_spatial, options.patch_temporal));
    }
    StepShare share;
    share.rows = std::move(
        plan_step(lengths, options.limits, options.num_data_ranks, options.cost).at(unsigned_of(options.data_rank)));
    for (const Row& row : share.rows) {
      share.members.insert(share.members.end(), row.members.begin(), row.members.end());
    }
    std::sort(share.members.begin(), share.members.end());
    for (const std::int64_t member : share.members) share.lengths.push_back(lengths[unsigned_of(member)]);
    for (Row& row : share.rows) {
      for (std::int64_t& member : row.members) {
        member = std::lower_bound(share.members.begin(), share.members.end(), member) - share.members.begin();
      }
    }
    return share;
  }

  std::shared_ptr<const Dataset> dataset;
  LoaderOptions options;
  LatentScale scale;
  std::int64_t position;
  std::mutex shares_mutex;
  std::map<std::int64_t, std::shared_ptr<const StepShare>> shares;  // by first position, until the step is given
  OrderedWork<Loaded> work;                                         // numbers are positions
  WorkerThreads<Loaded> threads;                                    // last: its threads use all above
};

StepLoader::StepLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options) {
  if (options.global_batch_size < 1 || options.num_workers < 1 || options.first_position < 0 ||
      options.patch_spatial < 1 || options.patch_temporal < 1) {
    throw InternalError("loader: got a batch of {}, {} workers, position {}, patches {}x{}, want values above 0",
                        options.global_batch_size, options.num_workers, options.first_position, options.patch_spatial,
                        options.patch_temporal);
  }
  if (options.num_data_ranks < 1 || options.data_rank < 0 || options.data_rank >= options.num_data_ranks) {
    throw InternalError("loader: got data rank {} of {}, want one from 0 below the number of ranks", options.data_rank,
                        options.num_data_ranks);
  }
  for (const SampleEntry& entry : dataset->entries()) {
    const std::int64_t tokens = num_tokens(entry, options.patch_spatial, options.patch_temporal);
    if (tokens <= options.limits.max_tokens) continue;
    throw DataError("sample {}: got {} tokens, want at most {} ({}); hint: dataset.task_encoder_seq_length={}",
                    entry.key, tokens, options.limits.max_tokens, dataset->folder().string(), tokens);
  }
  state_ = std::make_unique<State>(std::move(dataset), options);
}

StepLoader::~StepLoader() = default;

namespace {

// 1 for bad, over all ranks that read these samples.
std::vector<std::int64_t> agree_on_bad(std::vector<LoadedSample>& samples, const LoaderOptions& options) {
  std::vector<std::int64_t> is_bad;
  for (const LoadedSample& loaded : samples) is_bad.push_back(loaded.sample.problem.empty() ? 0 : 1);
  if (!options.agree || samples.empty()) return is_bad;
  const std::vector<std::int64_t> mine = is_bad;
  options.agree(is_bad);
  if (is_bad.size() != mine.size()) {
    throw InternalError("loader: got {} flags of bad samples, want {}", is_bad.size(), mine.size());
  }
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (mine[i] != 0) is_bad[i] = 1;
    if (is_bad[i] == 0 || mine[i] != 0) continue;
    samples[i].sample.problem = "bad as another rank has read it";
    samples[i].sample.latent_CTHW.reset();
    samples[i].sample.text_LE.reset();
  }
  return is_bad;
}

}  // namespace

LoadedStep StepLoader::next() {
  State& state = *state_;
  LoadedStep step;
  step.first_position = state.position;
  step.num_positions = state.options.global_batch_size;
  for (std::int64_t i = 0; i < step.num_positions; ++i) {
    std::optional<State::Loaded> loaded = state.work.next();
    if (*loaded) step.samples.push_back(std::move(**loaded));
  }
  const std::shared_ptr<const StepShare> share = state.share_of(step.first_position);
  {
    const std::lock_guard lock(state.shares_mutex);
    state.shares.erase(step.first_position);
  }
  state.position += step.num_positions;
  step.rows = share->rows;
  const std::vector<std::int64_t> is_bad = agree_on_bad(step.samples, state.options);
  for (Row& row : step.rows) {
    std::erase_if(row.members, [&](std::int64_t i) {
      if (is_bad[unsigned_of(i)] == 0) return false;
      row.num_tokens -= share->lengths[unsigned_of(i)];
      ++step.num_bad;
      return true;
    });
  }
  std::erase_if(step.rows, [](const Row& row) { return row.members.empty(); });
  return step;
}

}  // namespace dfm::data
