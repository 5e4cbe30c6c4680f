#include "dfm/prepare/prepare.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/base/stop_signals.h"
#include "dfm/data/shard_writer.h"
#include "dfm/data/source.h"
#include "prepare/encoders.h"
#include "prepare/peers.h"
#include "prepare/run_state.h"
#include "prepare/share.h"
#include "prepare/write_share.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPatchArea = 4;  // latent cells in a token of the DiT

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

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

// Name of the file in which a rank tells the first what it has made.
std::string result_name(const Share& share, int rank) { return fmt::format("{}-result-{}", share.run_name, rank); }

void write_result(const RunState& state, const std::string& name, const ShareResult& result) {
  nlohmann::json json = {{"shards", nlohmann::json::array()}, {"skipped", nlohmann::json::array()}};
  for (const ShardRecord& record : state.records()) json["shards"].push_back(record.shard);
  for (const auto& [item, skipped] : result.skipped) json["skipped"].push_back({item, skipped.name, skipped.reason});
  json["counts"] = {result.num_frames, result.num_captions, result.num_text_tokens};
  state.write(name, json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

// Adds the shards to `state`, and the rest to `all`.
void read_result(RunState& state, const std::string& name, ShareResult& all) {
  try {
    const nlohmann::json json = nlohmann::json::parse(state.read(name));
    for (const auto& shard : json.at("shards")) state.load(shard);
    for (const auto& row : json.at("skipped")) all.skipped.push_back({row.at(0), {row.at(1), row.at(2)}});
    const nlohmann::json& counts = json.at("counts");
    all.num_frames += counts.at(0).get<std::int64_t>();
    all.num_captions += counts.at(1).get<std::int64_t>();
    all.num_text_tokens += counts.at(2).get<std::int64_t>();
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: got damaged notes of a rank ({}), want them whole", name, error.what());
  }
}

data::DatasetCard make_card(const Job& job, const Encoders& encoders, const std::vector<data::SampleEntry>& samples) {
  data::DatasetCard card;
  const models::VideoTokenizer& tokenizer = *encoders.tokenizer;
  card.tokenizer = tokenizer.name();
  card.text_encoder = encoders.text->name();
  card.latent_channels = tokenizer.latent_channels();
  card.temporal_compression = tokenizer.temporal_compression();
  card.spatial_compression = tokenizer.spatial_compression();
  card.text_width = encoders.text->width();
  const models::LatentStatistics statistics = tokenizer.latent_statistics();
  card.latent_statistics_frames = statistics.num_frames;
  card.latent_mean = statistics.mean;
  card.latent_std = statistics.std;
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
Report finish(const Job& job, const Encoders& encoders, const RunState& state, ShareResult result) {
  Report report;
  std::vector<const ShardRecord*> records;
  for (const ShardRecord& record : state.records()) records.push_back(&record);
  std::sort(records.begin(), records.end(), [](const auto* a, const auto* b) { return a->shard < b->shard; });
  std::vector<std::string> shards;
  std::vector<data::SampleEntry> samples;
  std::vector<SkippedItem>& skipped = result.skipped;
  for (const ShardRecord* record : records) {
    for (data::SampleEntry entry : record->samples) {
      entry.shard = static_cast<std::uint32_t>(shards.size());
      report.num_latent_tokens += entry.frames * entry.height * entry.width / kPatchArea;
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
  data::DatasetCard card = make_card(job, encoders, samples);
  card.num_without_caption = report.num_without_caption;
  card.num_skipped = static_cast<std::int64_t>(report.skipped.size());
  report.num_samples = card.num_samples;
  report.num_images = card.num_images;
  report.num_clips = card.num_clips;
  report.num_frames_encoded = result.num_frames;
  report.num_captions_encoded = result.num_captions;
  report.num_text_tokens = result.num_text_tokens;
  data::finish_dataset(job.options.output_dir, shards, std::move(samples), card);
  return report;
}

// A signal has ended the run. On the first rank, when all have ended: what there is to go on with.
Report report_stopped(RunState& state, comm::World& world, int signal) {
  Report report;
  report.stopped_by = signal;
  if (world.is_first()) {
    state.reload();
    report.num_samples = num_samples(state);
  }
  return report;
}

Report prepare(const Job& job) {
  comm::World& world = job.world();
  const auto start = Clock::now();
  world.set_place("loading the encoders");
  const Host host = find_host(world);
  const bool needs_text = job.has_weightless_text() || host.leader() == world.rank();
  const Encoders encoders = load_encoders(job.options, job.settings, job.context, needs_text);
  const data::LoadLimits limits = load_limits(job.options, *encoders.tokenizer);
  const double loading_seconds = seconds_since(start);
  const StopSignals signals(job.context.watch_signals,
                            "\n[prepare] stopping: complete shards are kept; a second signal ends at once\n");
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
  const std::int64_t text_parameters = encoders.text ? encoders.text->num_parameters() : 0;
  const Share share = deal_items(job.source, limits, num_workers_of(job.options), text_parameters, host, *state, world);
  world.set_place("encoding");
  Peers peers(job.context.world);
  Bar bar(job, num_before);
  ShareResult result = write_share(job, encoders, share, num_before, *state, peers, bar);
  if (!world.is_first()) {
    write_result(*state, result_name(share, world.rank()), result);
    state->leave();
  }
  const int signal = peers.finish([&] {
    bar.show(num_before + share.items.size() + peers.others_done());
    static_cast<void>(is_to_stop(job, peers));
  });
  bar.finish();
  Report report;
  if (signal != 0) {
    report = report_stopped(*state, world, signal);
  } else if (world.is_first()) {
    world.set_place("finishing the data set");
    for (int rank = 1; rank < world.size(); ++rank) read_result(*state, result_name(share, rank), result);
    report = finish(job, encoders, *state, std::move(result));
    state->remove();
  }
  report.num_continued = num_continued;
  report.loading_seconds = loading_seconds;
  static_cast<void>(world.gather_text("the run is over"));
  return report;
}

}  // namespace

void fetch(const PrepareOptions& options) {
  with_advice(options, [&] { data::fetch_source(source_options(options)); });
  with_advice(options, [&] { models::fetch_tokenizer(tokenizer_of(options), tokenizer_cache(options)); });
  with_advice(options, [&] { models::fetch_text_encoder(text_encoder_of(options), text_encoder_cache(options)); });
}

Report run(const PrepareOptions& options, const RunContext& context) {
  const auto start = Clock::now();
  comm::World& world = *context.world;
  world.set_place("listing the input");
  const std::unique_ptr<data::Source> source = data::open_source(source_options(options));
  Settings settings = make_settings(options, !context.device.is_cpu());
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
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace dfm::prepare
