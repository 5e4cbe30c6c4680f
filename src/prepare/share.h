#pragma once
// Which items of the source a rank prepares, and which ranks share a host.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/data/source.h"
#include "prepare/run_state.h"

namespace dfm::prepare {

// Of the host that this rank is on. Its lowest rank encodes the captions for all of them.
struct Host {
  std::vector<int> ranks{0};    // ascending
  std::vector<int> leaders{0};  // the lowest rank of every host of the world
  [[nodiscard]] int leader() const { return ranks.front(); }
};
// Called by all ranks.
Host find_host(comm::World& world);

struct Share {
  std::vector<std::uint64_t> items;  // ascending
  std::int64_t first_number = 0;     // of this rank's next shard
  std::string run_name;              // new in each run: in front of the names of files that ranks tell each other by
  std::vector<std::vector<std::uint64_t>> of_host;  // the items of each of the host's ranks
  int host_leader = 0;
  std::size_t place_on_host = 0;  // this rank's among them
};

// Deals what `state` lacks by what it costs: its pixels, and for the leaders the host's captions, each different one
// `text_parameters` multiplications a token. Called by all ranks; the first's `text_parameters` and `state` count.
// Items are measured by all ranks, each a part, on `num_threads` threads.
Share deal_items(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads,
                 std::int64_t text_parameters, const Host& host, RunState& state, comm::World& world);

}  // namespace dfm::prepare
