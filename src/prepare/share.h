#pragma once
// Which items of the source a rank prepares.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/data/source.h"
#include "prepare/run_state.h"

namespace dfm::prepare {

struct Share {
  std::vector<std::uint64_t> items;  // ascending
  std::int64_t first_number = 0;     // of this rank's next shard
  std::string run_name;              // new in each run: in front of the names of files that ranks tell each other by
};

// Deals what `state` lacks by number of pixels; called by all ranks. On the first, `state` knows what is done. The
// sizes are read by all ranks, each a part, on `num_threads` threads.
Share deal_items(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads, RunState& state,
                 comm::World& world);

}  // namespace dfm::prepare
