#pragma once
// `dfm prepare`: source -> decode, resize, encode on worker threads -> shards in source order. A stopped run continues
// with what its complete shards lack and gives, on one rank, the same bytes as an undisturbed one.
//
// Over several ranks the samples are dealt by their number of pixels. Each rank encodes its share and writes a series
// of shards of its own (rank1-000000.tar, ...); the set of samples, and with it what training sees, is the same for any
// number of ranks, and a stopped run may go on with another number. Ranks share nothing but the input, the output
// folder (NFS will do) and World::gather_text.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/prepare/options.h"

namespace dfm::prepare {

struct RunContext {
  at::Device device = at::kCPU;  // of the encoders
  std::shared_ptr<comm::World> world = comm::World::solo();
  bool show_progress = true;  // a bar on stderr
  // Called with (items of the source done, items in all) from the thread that called run(). Of several ranks each
  // counts the share that it was dealt.
  std::function<void(std::uint64_t done, std::uint64_t total)> on_progress;
};

struct Skipped {
  std::string name, reason;
};

struct Report {
  std::filesystem::path folder;
  std::string source;              // one line
  bool already_complete = false;   // nothing was to do
  std::int64_t num_continued = 0;  // samples that a stopped run had left
  std::int64_t num_samples = 0, num_images = 0, num_clips = 0;
  std::int64_t num_without_caption = 0;
  std::int64_t num_shards = 0;
  std::uint64_t num_bytes = 0;  // of the shards
  double seconds = 0;
  std::vector<Skipped> skipped;
};

// The report is of all ranks on the first of them; the others know only folder, source and time. On return the data set
// is complete for every rank.
// Media that cannot be read are skipped and reported; if none can be read that is a DataError. Settings that differ
// from those of the run to be continued are a ConfigError that names them; a folder that holds anything else, or that
// another run is writing to, is a DataError.
Report run(const PrepareOptions& options, const RunContext& context);

// The final report for people, several lines.
std::string describe(const Report& report);

}  // namespace dfm::prepare
