#pragma once
// A rank's share -> its shards.
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/base/progress.h"
#include "dfm/comm/world.h"
#include "dfm/data/source.h"
#include "dfm/prepare/options.h"
#include "dfm/prepare/prepare.h"
#include "prepare/encoders.h"
#include "prepare/peers.h"
#include "prepare/run_state.h"
#include "prepare/settings.h"
#include "prepare/share.h"

namespace dfm::prepare {

// What run() works with, on each rank.
struct Job {
  const data::Source& source;
  const PrepareOptions& options;
  const RunContext& context;
  const Settings& settings;

  [[nodiscard]] comm::World& world() const { return *context.world; }
  // Then every rank has it; else one of each host.
  [[nodiscard]] bool has_weightless_text() const;
};

// The bar, on the first rank: its own samples as they come, those of the others as it hears of them.
class Bar {
 public:
  Bar(const Job& job, std::uint64_t num_before);
  void show(std::uint64_t done);
  void finish();

 private:
  bool is_shown_;
  std::uint64_t shown_;
  Progress progress_;
};

struct ShareResult {
  std::vector<SkippedItem> skipped;  // after the last shard
  std::int64_t num_frames = 0;       // encoded
  std::int64_t num_captions = 0, num_text_tokens = 0;
};

// Whether the run is to end because of a signal to this rank or another.
bool is_to_stop(const Job& job, Peers& peers);

// Ends early when is_to_stop(). Nothing half-written stays behind.
ShareResult write_share(const Job& job, const Encoders& encoders, const Share& share, std::uint64_t num_before,
                        RunState& state, Peers& peers, Bar& bar);

}  // namespace dfm::prepare
