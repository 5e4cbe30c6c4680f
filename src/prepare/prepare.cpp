#include "dfm/prepare/prepare.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/base/progress.h"
#include "dfm/data/ordered_work.h"
#include "dfm/data/shard_writer.h"
#include "dfm/data/source.h"
#include "prepare/encoder.h"
#include "prepare/peers.h"
#include "prepare/run_state.h"
#include "prepare/share.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;

void check_captions(const data::Source& source) {
  std::int64_t num_missing = 0;
  std::string names;
  constexpr std::int64_t kMostNames = 5;
  for (std::size_t i = 0; i < source.size(); ++i) {
    const data::SourceItem item = source.item(i);
    if (item.caption) continue;
    if (++num_missing <= kMostNames) names += (num_missing > 1 ? ", " : "") + item.name;
  }
  if (num_missing == 0) return;
  throw DataError("captions: got {} of {} items without one ({}{}), want one for each (--require-captions)",
                  num_missing, source.size(), names, num_missing > kMostNames ? ", ..." : "");
}

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

// What run() works with, on each rank.
struct Job {
  const data::Source& source;
  const PrepareOptions& options;
  const RunContext& context;
  const Settings& settings;

  [[nodiscard]] comm::World& world() const { return *context.world; }
};

// The bar, on the first rank: its own samples as they come, those of the others as it hears of them.
class Bar {
 public:
  Bar(const Job& job, std::uint64_t num_before)
      : is_shown_(job.context.show_progress && job.world().is_first()),
        shown_(num_before),
        progress_("prepare", job.source.size(), "samples", num_before) {}
  void show(std::uint64_t done) {
    if (!is_shown_ || done <= shown_) return;
    progress_.advance(done - std::exchange(shown_, done));
  }
  void finish() {
    if (is_shown_) progress_.finish();
  }

 private:
  bool is_shown_;
  std::uint64_t shown_;
  Progress progress_;
};

// Name of the file in which a rank tells the first what it has made.
std::string result_name(const Share& share, int rank) { return fmt::format("{}-result-{}", share.run_name, rank); }

void write_result(const RunState& state, const std::string& name, const std::vector<SkippedItem>& skipped_at_end) {
  nlohmann::json json = {{"shards", nlohmann::json::array()}, {"skipped", nlohmann::json::array()}};
  for (const ShardRecord& record : state.records()) json["shards"].push_back(record.shard);
  for (const auto& [item, skipped] : skipped_at_end) json["skipped"].push_back({item, skipped.name, skipped.reason});
  state.write(name, json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

// Adds the shards to `state`; gives what was skipped after the last of them.
std::vector<SkippedItem> read_result(RunState& state, const std::string& name) {
  std::vector<SkippedItem> skipped;
  try {
    const nlohmann::json json = nlohmann::json::parse(state.read(name));
    for (const auto& shard : json.at("shards")) state.load(shard);
    for (const auto& row : json.at("skipped")) skipped.push_back({row.at(0), {row.at(1), row.at(2)}});
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: got damaged notes of a rank ({}), want them whole", name, error.what());
  }
  return skipped;
}

// Encodes and writes this rank's share. Gives what was skipped after its last shard.
std::vector<SkippedItem> write_shards(const Job& job, Encoder& encoder, const Share& share, std::uint64_t num_before,
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
  const data::ShardLimits limits{.max_count = job.options.shard_max_count,
                                 .max_bytes = static_cast<std::uint64_t>(job.options.shard_max_bytes)};
  data::ShardWriter writer(job.options.output_dir, limits, job.world().rank(), earlier, commit);
  const bool is_alone = job.world().size() == 1;
  const std::uint64_t counted_before = is_alone ? num_before : 0;
  const std::uint64_t total = is_alone ? job.source.size() : share.items.size();
  const SerialOperations serial;
  data::OrderedWork<Result> work(0, share.items.size(), static_cast<std::uint64_t>(2 * job.options.num_workers + 2));
  const data::WorkerThreads<Result> workers(job.options.num_workers, work,
                                            [&](std::uint64_t i) { return encoder.run(share.items[i]); });
  for (std::uint64_t i = 0; std::optional<Result> result = work.next(); ++i) {
    // A shard that this sample does not fit into is committed first, without it.
    if (result->parts) {
      writer.add(*result->parts);
      open.num_without_caption += result->has_caption ? 0 : 1;
    } else {
      open.skipped.push_back({share.items[i], std::move(result->skipped)});
    }
    peers.set_done(i + 1);
    bar.show(num_before + i + 1 + peers.others_done());
    if (job.context.on_progress) job.context.on_progress(counted_before + i + 1, total);
  }
  writer.close_shard();
  return std::move(open.skipped);
}

data::DatasetCard make_card(const Job& job, const Encoder& encoder, const std::vector<data::SampleEntry>& samples) {
  data::DatasetCard card;
  card.tokenizer = encoder.tokenizer().name();
  card.text_encoder = encoder.text_encoder().name();
  card.latent_channels = encoder.tokenizer().latent_channels();
  card.temporal_compression = encoder.tokenizer().temporal_compression();
  card.spatial_compression = encoder.tokenizer().spatial_compression();
  card.text_width = encoder.text_encoder().width();
  card.num_samples = static_cast<std::int64_t>(samples.size());
  std::map<double, std::int64_t> clips_at;
  for (const data::SampleEntry& entry : samples) {
    ++(entry.frames > 1 ? card.num_clips : card.num_images);
    if (entry.frames > 1 && entry.fps > 0) ++clips_at[entry.fps];
  }
  std::int64_t most = 0;
  for (const auto& [fps, count] : clips_at) {
    if (count > most) most = count, card.fps = fps;
  }
  card.source = job.options.input;
  card.settings = job.settings;
  card.dfm_version = DFM_VERSION;
  return card;
}

void measure_shards(const fs::path& folder, Report& report) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".tar") continue;
    ++report.num_shards;
    report.num_bytes += entry.file_size();
  }
}

// The report of a folder that is complete already.
Report report_complete(const PrepareOptions& options, const data::DatasetCard& card, const Settings& settings) {
  const std::string differences = describe_differences(card.settings, settings);
  if (!differences.empty()) {
    throw ConfigError(
        "--output-dir {}: got settings that differ from those of the data set there ({}), want the same or another "
        "folder; hint: name another --output-dir",
        options.output_dir.string(), differences);
  }
  std::error_code ignored;
  fs::remove_all(options.output_dir / data::kUnfinishedName, ignored);  // a run stopped just before it did this
  Report report;
  report.already_complete = true;
  report.num_samples = report.num_continued = card.num_samples;
  report.num_images = card.num_images;
  report.num_clips = card.num_clips;
  report.num_without_caption = card.num_without_caption;
  return report;
}

std::int64_t num_samples(const RunState& state) {
  std::int64_t count = 0;
  for (const ShardRecord& record : state.records()) count += static_cast<std::int64_t>(record.samples.size());
  return count;
}

// All shards are written: the files of the whole folder.
Report finish(const Job& job, const Encoder& encoder, const RunState& state, std::vector<SkippedItem> skipped) {
  Report report;
  std::vector<const ShardRecord*> records;
  for (const ShardRecord& record : state.records()) records.push_back(&record);
  std::sort(records.begin(), records.end(), [](const auto* a, const auto* b) { return a->shard < b->shard; });
  std::vector<std::string> shards;
  std::vector<data::SampleEntry> samples;
  for (const ShardRecord* record : records) {
    for (data::SampleEntry entry : record->samples) {
      entry.shard = static_cast<std::uint32_t>(shards.size());
      samples.push_back(std::move(entry));
    }
    shards.push_back(record->shard);
    skipped.insert(skipped.end(), record->skipped.begin(), record->skipped.end());
    report.num_without_caption += record->num_without_caption;
  }
  std::sort(skipped.begin(), skipped.end(), [](const auto& a, const auto& b) { return a.item < b.item; });
  for (SkippedItem& item : skipped) report.skipped.push_back(std::move(item.skipped));
  if (samples.empty()) {
    const std::string first =
        report.skipped.empty() ? "none" : fmt::format("{}: {}", report.skipped[0].name, report.skipped[0].reason);
    throw DataError("--input {}: got {} items of which none can be read, want at least one; the first: {}",
                    job.options.input, job.source.size(), first);
  }
  data::DatasetCard card = make_card(job, encoder, samples);
  card.num_without_caption = report.num_without_caption;
  card.num_skipped = static_cast<std::int64_t>(report.skipped.size());
  report.num_samples = card.num_samples;
  report.num_images = card.num_images;
  report.num_clips = card.num_clips;
  data::finish_dataset(job.options.output_dir, shards, std::move(samples), card);
  return report;
}

Report prepare(const Job& job) {
  comm::World& world = job.world();
  world.set_place("loading the encoders");
  Encoder encoder(job.source, job.options, job.settings, job.context.device);
  std::optional<RunState> state;
  std::uint64_t num_before = 0;
  std::int64_t num_continued = 0;
  world.set_place("making the output folder");
  world.on_first([&] {
    if (job.options.require_captions) check_captions(job.source);
    state.emplace(job.options.output_dir, job.settings);
    const std::vector<char> is_done = state->done_items(job.source.size());
    num_before = static_cast<std::uint64_t>(std::count(is_done.begin(), is_done.end(), 1));
    num_continued = num_samples(*state);
    if (num_before > 0) {
      log::info("prepare", "{}: continuing a stopped run after {} of {} items", job.options.output_dir.string(),
                num_before, job.source.size());
    }
  });
  world.set_place("dealing the samples");
  if (!state) state.emplace(job.options.output_dir, world.rank());
  const Share share = deal_items(job.source, encoder.limits(), job.options.num_workers, *state, world);
  world.set_place("encoding");
  Peers peers(job.context.world);
  Bar bar(job, num_before);
  std::vector<SkippedItem> skipped = write_shards(job, encoder, share, num_before, *state, peers, bar);
  if (!world.is_first()) {
    write_result(*state, result_name(share, world.rank()), skipped);
    state->leave();
  }
  peers.finish([&] { bar.show(num_before + share.items.size() + peers.others_done()); });
  bar.finish();
  world.set_place("finishing the data set");
  Report report;
  if (world.is_first()) {
    for (int rank = 1; rank < world.size(); ++rank) {
      const std::vector<SkippedItem> of_rank = read_result(*state, result_name(share, rank));
      skipped.insert(skipped.end(), of_rank.begin(), of_rank.end());
    }
    report = finish(job, encoder, *state, std::move(skipped));
    report.num_continued = num_continued;
    state->remove();
  }
  static_cast<void>(world.gather_text("the data set is complete"));
  return report;
}

}  // namespace

Report run(const PrepareOptions& options, const RunContext& context) {
  const auto start = std::chrono::steady_clock::now();
  comm::World& world = *context.world;
  world.set_place("listing the input");
  const std::unique_ptr<data::Source> source = data::open_source(options.input, options.seed);
  Settings settings = make_settings(options, *source);
  world.require_same("input and settings of prepare", describe_view(settings, *source));
  std::optional<data::DatasetCard> card;
  world.on_first([&] {
    settings["media"] = describe_media(*source);
    card = data::load_card(options.output_dir);
  });
  Report report;
  if (card) report = report_complete(options, *card, settings);
  const bool is_complete = world.gather_text(card ? "complete" : "to do").at(0) == "complete";
  if (!is_complete) report = prepare({*source, options, context, settings});
  report.already_complete = is_complete;
  report.folder = options.output_dir;
  report.source = source->description();
  if (world.is_first()) measure_shards(options.output_dir, report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace dfm::prepare
