#pragma once
// The samples of one step after the other, read ahead on worker threads. Its whole state is one integer: the position
// of the next step's first sample. What it gives does not depend on the number of workers.
//
// Over several data ranks each reads its share of the step, which every rank knows from the index.
//
//   StepLoader loader(dataset, {.seed = 1234, .global_batch_size = 128, .first_position = consumed});
//   LoadedStep step = loader.next();
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dfm/data/dataset.h"
#include "dfm/data/plan.h"

namespace dfm::data {

struct LoaderOptions {
  std::uint64_t seed = 1234;
  PackLimits limits;
  std::int64_t global_batch_size = 128;  // samples a step
  std::int64_t first_position = 0;       // consumed samples
  std::int64_t num_workers = 2;
  std::int64_t patch_spatial = 2, patch_temporal = 1;
  std::int64_t steps_ahead = 2;  // steps that may wait, read, for next()
  // This rank's share of each step: only its samples are read.
  std::int64_t data_rank = 0, num_data_ranks = 1;
  PackCost cost;
  // Called in next() with one flag a sample of this rank's (in the order of their positions): 1 for bad. Ranks that
  // read the same samples agree here: afterwards a flag is 1 on each of them if it was on one. Not called in a step in
  // which this data rank has no sample. Null: alone.
  std::function<void(std::vector<std::int64_t>& is_bad)> agree;
};

struct LoadedSample {
  std::int64_t position = 0;  // in the endless stream: n of everything random
  std::size_t index = 0;      // in Dataset::entries()
  Sample sample;              // with a problem: bad, and in no row. Its latent is normalised (data::LatentScale)
};

struct LoadedStep {
  std::int64_t first_position = 0;
  std::int64_t num_positions = 0;     // of the whole step, over all data ranks
  std::vector<LoadedSample> samples;  // this rank's, by position
  // Members are indices into `samples`. Planned from the index alone; then bad samples are taken out, so that they
  // weigh 0, and rows that are left empty.
  std::vector<Row> rows;
  std::int64_t num_bad = 0;  // of this rank's
};

class StepLoader {
 public:
  // A sample of the data set longer than limits.max_tokens is a DataError that names it.
  StepLoader(std::shared_ptr<const Dataset> dataset, const LoaderOptions& options);
  ~StepLoader();
  StepLoader(const StepLoader&) = delete;
  StepLoader& operator=(const StepLoader&) = delete;
  // Waits for the step to be read. An error of a worker is thrown here, in the step that it belongs to.
  LoadedStep next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Tokens of a sample's latent after patching, at least 1: what rows are planned with.
std::int64_t num_tokens(const SampleEntry& entry, std::int64_t patch_spatial, std::int64_t patch_temporal);

}  // namespace dfm::data
