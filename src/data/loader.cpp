#include "dfm/data/loader.h"

#include <c10/util/ParallelGuard.h>

#include <algorithm>

#include "dfm/base/error.h"
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

struct StepLoader::State {
  State(std::shared_ptr<const Dataset> opened, const LoaderOptions& given)
      : dataset(std::move(opened)),
        options(given),
        position(given.first_position),
        work(unsigned_of(given.first_position), OrderedWork<LoadedSample>::kEndless,
             unsigned_of(given.global_batch_size * std::max<std::int64_t>(1, given.steps_ahead))),
        threads(given.num_workers, work, [this](std::uint64_t at) { return load(at); }) {}

  [[nodiscard]] LoadedSample load(std::uint64_t at) const {
    const c10::ParallelGuard serial(true);  // the cores belong to training
    LoadedSample loaded;
    loaded.position = static_cast<std::int64_t>(at);
    loaded.index = sample_at(options.seed, at, dataset->entries().size());
    loaded.sample = dataset->read(loaded.index);
    if (loaded.sample.problem.empty()) {
      loaded.sample.problem =
          patch_problem(dataset->entries()[loaded.index], options.patch_spatial, options.patch_temporal);
      if (!loaded.sample.problem.empty()) loaded.sample.latent_CTHW.reset(), loaded.sample.text_LE.reset();
    }
    return loaded;
  }

  std::shared_ptr<const Dataset> dataset;
  LoaderOptions options;
  std::int64_t position;
  OrderedWork<LoadedSample> work;
  WorkerThreads<LoadedSample> threads;  // last: its threads use all above
};

StepLoader::StepLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options) {
  if (options.global_batch_size < 1 || options.num_workers < 1 || options.first_position < 0 ||
      options.patch_spatial < 1 || options.patch_temporal < 1) {
    throw InternalError("loader: got a batch of {}, {} workers, position {}, patches {}x{}, want values above 0",
                        options.global_batch_size, options.num_workers, options.first_position, options.patch_spatial,
                        options.patch_temporal);
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

LoadedStep StepLoader::next() {
  State& state = *state_;
  LoadedStep step;
  step.first_position = state.position;
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < state.options.global_batch_size; ++i) {
    step.samples.push_back(std::move(*state.work.next()));
    const SampleEntry& entry = state.dataset->entries()[step.samples.back().index];
    lengths.push_back(num_tokens(entry, state.options.patch_spatial, state.options.patch_temporal));
  }
  state.position += state.options.global_batch_size;
  step.rows = pack_rows(lengths, state.options.limits);
  const auto is_bad = [&](std::int64_t i) { return !step.samples[unsigned_of(i)].sample.problem.empty(); };
  for (Row& row : step.rows) {
    std::erase_if(row.members, [&](std::int64_t i) {
      if (!is_bad(i)) return false;
      row.num_tokens -= lengths[unsigned_of(i)];
      ++step.num_bad;
      return true;
    });
  }
  std::erase_if(step.rows, [](const Row& row) { return row.members.empty(); });
  return step;
}

}  // namespace dfm::data
