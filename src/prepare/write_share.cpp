#include "prepare/write_share.h"

#include <ATen/Parallel.h>

#include <memory>
#include <utility>

#include "dfm/base/stop_signals.h"
#include "dfm/data/shard_writer.h"
#include "prepare/stream.h"
#include "prepare/text_files.h"
#include "prepare/texts.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;

// One thread a worker, and the caller's setting afterwards.
class SerialOperations {
 public:
  SerialOperations() { at::set_num_threads(1); }
  ~SerialOperations() { at::set_num_threads(before_); }
  SerialOperations(const SerialOperations&) = delete;
  SerialOperations& operator=(const SerialOperations&) = delete;

 private:
  int before_ = at::get_num_threads();
};

// What an error or a signal leaves of the shard being filled: room on a full disk.
class OpenShardRemover {
 public:
  OpenShardRemover(fs::path folder, int rank) : folder_(std::move(folder)), prefix_(fmt::format("rank{}-", rank)) {}
  ~OpenShardRemover() {
    std::error_code ignored;
    std::vector<fs::path> open;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_, ignored)) {
      const std::string name = entry.path().filename().string();
      if (name.starts_with(prefix_) && name.ends_with(".tar.tmp")) open.push_back(entry.path());
    }
    for (const fs::path& path : open) fs::remove(path, ignored);
  }
  OpenShardRemover(const OpenShardRemover&) = delete;
  OpenShardRemover& operator=(const OpenShardRemover&) = delete;

 private:
  fs::path folder_;
  std::string prefix_;
};

StreamOptions stream_options(const Job& job) {
  StreamOptions options;
  options.device = job.context.device;
  options.num_workers = num_workers_of(job.options);
  constexpr std::int64_t kWaitingBatches = 16;
  options.groups.max_pixels = job.options.encode_batch_pixels;
  options.groups.max_waiting_pixels = kWaitingBatches * job.options.encode_batch_pixels;
  return options;
}

std::unique_ptr<Texts> make_texts(const Job& job, const Encoders& encoders, const Share& share, const RunState& state,
                                  Peers& peers) {
  const bool is_batched = gains_from_batches(*encoders.tokenizer, job.context.device);
  if (encoders.text && (job.has_weightless_text() || (job.world().size() == 1 && !is_batched))) {
    return std::make_unique<TextCache>(*encoders.text);
  }
  // Off the GPU the encoder is, better a few calls of many captions; on a CPU a caption at a time is as fast.
  constexpr std::uint64_t kChunk = 512, kOffloadedChunk = 4096, kSerialChunk = 32;
  TextFilesOptions options{.name = fmt::format("{}-text-{}", share.run_name, share.host_leader),
                           .shares = share.of_host,
                           .own_share = share.place_on_host,
                           .chunk_items = !is_batched                        ? kSerialChunk
                                          : job.options.text_encoder_offload ? kOffloadedChunk
                                                                             : kChunk,
                           .is_packed = is_batched,
                           .turn = encoders.turn};
  return std::make_unique<TextFiles>(job.source, state, encoders.text.get(), std::move(options), [&job, &peers] {
    peers.set_waiting();
    return is_to_stop(job, peers);
  });
}

}  // namespace

bool Job::has_weightless_text() const { return !context.text_encoder && settings.at("text_encoder") == "builtin"; }

Bar::Bar(const Job& job, std::uint64_t num_before)
    : is_shown_(job.context.show_progress && job.world().is_first()),
      shown_(num_before),
      progress_("prepare", job.source.size(), "samples", num_before) {}

void Bar::show(std::uint64_t done) {
  if (!is_shown_ || done <= shown_) return;
  progress_.advance(done - std::exchange(shown_, done));
}

void Bar::finish() {
  if (is_shown_) progress_.finish();
}

bool is_to_stop(const Job& job, Peers& peers) {
  if (job.context.watch_signals && StopSignals::received() != 0) peers.stop(StopSignals::received());
  return peers.stopped_by() != 0;
}

ShareResult write_share(const Job& job, const Encoders& encoders, const Share& share, std::uint64_t num_before,
                        RunState& state, Peers& peers, Bar& bar) {
  std::vector<std::string> earlier;  // names of the series, for its numbers
  for (std::int64_t number = 0; number < share.first_number; ++number) {
    earlier.push_back(data::ShardWriter::shard_name(job.world().rank(), number));
  }
  ShardRecord open;  // of the shard being filled
  const auto commit = [&](const std::string& shard, const std::vector<data::SampleEntry>& samples) {
    ShardRecord record = std::exchange(open, {});
    record.shard = shard;
    record.samples = samples;
    state.add(std::move(record));
  };
  const data::ShardLimits shard_limits{.max_count = job.options.shard_max_count,
                                       .max_bytes = static_cast<std::uint64_t>(job.options.shard_max_bytes)};
  const OpenShardRemover remover(job.options.output_dir, job.world().rank());  // after the writer has closed its file
  data::ShardWriter writer(job.options.output_dir, shard_limits, job.world().rank(), earlier, commit);
  const bool is_alone = job.world().size() == 1;
  const std::uint64_t counted_before = is_alone ? num_before : 0;
  const std::uint64_t total = is_alone ? job.source.size() : share.items.size();
  const StreamOptions how = stream_options(job);  // asks how many threads there are
  const SerialOperations serial;
  const data::LoadLimits limits = load_limits(job.options, *encoders.tokenizer);
  const std::unique_ptr<Texts> texts = make_texts(job, encoders, share, state, peers);
  const auto make_stream = gains_from_batches(*encoders.tokenizer, job.context.device) ? batched : one_by_one;
  const auto stream = make_stream(job.source, limits, share.items, encoders, *texts, how);
  ShareResult result;
  bool is_complete = false;
  try {
    for (std::uint64_t i = 0; !is_to_stop(job, peers); ++i) {
      std::optional<Result> sample = stream->next();
      if (!sample) {
        texts->finish();
        is_complete = true;
        break;
      }
      // A shard that this sample does not fit into is committed first, without it.
      if (sample->parts) {
        writer.add(*sample->parts);
        open.num_without_caption += sample->has_caption ? 0 : 1;
        result.num_frames += sample->num_frames;
      } else {
        open.skipped.push_back({share.items[i], std::move(sample->skipped)});
      }
      peers.set_done(i + 1);
      bar.show(num_before + i + 1 + peers.others_done());
      if (job.context.on_progress) job.context.on_progress(counted_before + i + 1, total);
    }
  } catch (const Stopped&) {
    if (!is_to_stop(job, peers)) throw;
  }
  if (is_complete) writer.close_shard();
  result.skipped = std::move(open.skipped);
  result.num_captions = texts->encoded().captions;
  result.num_text_tokens = texts->encoded().rows;
  return result;
}

}  // namespace dfm::prepare
