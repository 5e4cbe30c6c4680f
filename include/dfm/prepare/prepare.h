#pragma once
// `dfm prepare`: source -> decode, resize, encode -> shards in source order. A stopped run continues with what its
// complete shards lack and gives, on one rank and a CPU, the same bytes as an undisturbed one.
//
// On a CPU worker threads take a sample each, from reading to serialising. On a GPU they only read and resize; pictures
// of equal size are encoded in batches, captions many at once, and serialising and writing overlap with both. Batches
// are a function of the list of samples alone, so that the same run gives the same bytes; a continued run forms others,
// and the last bit of a latent may then differ where the GPU's kernels depend on the batch.
//
// Over several ranks the samples are dealt by what they cost. Each rank encodes its share and writes a series of shards
// of its own (rank1-000000.tar, ...); the set of samples, and with it what training sees, is the same for any number of
// ranks, and a stopped run may go on with another number. One rank of each host encodes the captions for all of it.
// Ranks share nothing but the input, the output folder (NFS will do) and World::gather_text.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dfm/comm/world.h"
#include "dfm/models/encoders.h"
#include "dfm/prepare/options.h"

namespace dfm::prepare {

struct RunContext {
  at::Device device = at::kCPU;  // of the encoders
  std::shared_ptr<comm::World> world = comm::World::solo();
  bool show_progress = true;   // a bar on stderr
  bool watch_signals = false;  // SIGTERM and SIGINT end the run in good order
  // Called with (items of the source done, items in all) from the thread that called run(). Of several ranks each
  // counts the share that it was dealt.
  std::function<void(std::uint64_t done, std::uint64_t total)> on_progress;
  // Instead of loading those that the options name; the first rank of each host needs the text encoder.
  std::shared_ptr<const models::VideoTokenizer> tokenizer;
  std::shared_ptr<const models::TextEncoder> text_encoder;
};

struct Skipped {
  std::string name, reason;
};

struct Report {
  std::filesystem::path folder;
  std::string source;              // one line
  bool already_complete = false;   // nothing was to do
  int stopped_by = 0;              // the signal that ended the run before the data set was complete
  std::int64_t num_continued = 0;  // samples that a stopped run had left
  std::int64_t num_samples = 0, num_images = 0, num_clips = 0;
  std::int64_t num_without_caption = 0;
  std::int64_t num_shards = 0;
  std::uint64_t num_bytes = 0;  // of the shards
  double seconds = 0;           // in all
  double loading_seconds = 0;   // of these, until the encoders were there
  // Of this run alone:
  std::int64_t num_frames_encoded = 0;    // a picture is one
  std::int64_t num_latent_tokens = 0;     // what the samples are for the DiT
  std::int64_t num_captions_encoded = 0;  // different ones
  std::int64_t num_text_tokens = 0;       // rows of these
  std::vector<Skipped> skipped;
};

// Downloads what run() will open and is not there yet. Before ranks have met: it may take longer than their patience.
// Errors of encoders that the user has not chosen say how to do without.
void fetch(const PrepareOptions& options);

// The report is of all ranks on the first of them; the others know only folder, source, time and stopped_by. On return
// the data set is complete for every rank, but for a run that was stopped.
// Media that cannot be read are skipped and reported; if none can be read that is a DataError. Settings that differ
// from those of the run to be continued are a ConfigError that names them; a folder that holds anything else, or that
// another run is writing to, is a DataError. An input or encoder that cannot be had is an error before anything is
// written.
Report run(const PrepareOptions& options, const RunContext& context);

// The final report for people, several lines.
std::string describe(const Report& report);

}  // namespace dfm::prepare
