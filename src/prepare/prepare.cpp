#include "dfm/prepare/prepare.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <map>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/base/log.h"
#include "dfm/base/progress.h"
#include "dfm/data/ordered_work.h"
#include "dfm/data/shard_writer.h"
#include "dfm/data/source.h"
#include "dfm/models/encoders.h"
#include "prepare/run_state.h"
#include "prepare/text_cache.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultTokenizer = "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8";  // the tutorial's
constexpr const char* kDefaultTextEncoder = "google-t5/t5-11b";

// One item of the source, done: a sample, or why there is none.
struct Result {
  std::optional<data::SampleParts> parts;
  Skipped skipped;
  bool has_caption = false;
};

bool is_synthetic(const std::string& input) { return input.starts_with("synthetic:"); }

// Hash over what the source holds: a stopped run cannot continue with other pictures behind the same numbers.
std::uint64_t source_fingerprint(const data::Source& source) {
  std::uint64_t hash = fnv1a64("");
  for (std::size_t i = 0; i < source.size(); ++i) {
    try {
      const data::SourceItem item = source.item(i);
      hash = fnv1a64(item.name, hash);
      hash = fnv1a64(item.caption ? "\ncaption " + *item.caption + "\n" : "\nno caption\n", hash);
    } catch (const Error&) {
      hash = fnv1a64("\nunreadable caption\n", hash);  // the item is skipped when its turn comes
    }
  }
  return hash;
}

// Drawn butterflies are simple: the size at which a small model learns them, and soon.
constexpr std::int64_t kShortSide = 512;
constexpr std::int64_t kSyntheticShortSide = 96;

std::int64_t short_side_of(const PrepareOptions& options) {
  return options.short_side.value_or(is_synthetic(options.input) ? kSyntheticShortSide : kShortSide);
}

// Everything that decides the bytes of the data set.
Settings make_settings(const PrepareOptions& options, const data::Source& source) {
  const std::string encoder = source.default_encoder();
  Settings settings;
  settings["input"] = is_synthetic(options.input) ? options.input : fs::weakly_canonical(options.input).string();
  settings["media"] = fmt::format("{} items {:016x}", source.size(), source_fingerprint(source));
  settings["tokenizer"] = options.tokenizer.value_or(encoder.empty() ? kDefaultTokenizer : encoder);
  settings["text_encoder"] = options.text_encoder.value_or(encoder.empty() ? kDefaultTextEncoder : encoder);
  settings["short_side"] = fmt::to_string(short_side_of(options));
  settings["num_video_frames"] = fmt::to_string(options.num_video_frames);
  settings["fps"] = options.fps ? fmt::to_string(*options.fps) : "each clip's own";
  settings["shard_max_count"] = fmt::to_string(options.shard_max_count);
  settings["shard_max_bytes"] = fmt::to_string(options.shard_max_bytes);
  if (is_synthetic(options.input)) settings["seed"] = fmt::to_string(options.seed);
  settings["dfm_version"] = DFM_VERSION;
  return settings;
}

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

class Encoder {
 public:
  Encoder(const data::Source& source, const PrepareOptions& options, const Settings& settings, at::Device device)
      : source_(source),
        device_(device),
        tokenizer_(models::make_tokenizer(settings.at("tokenizer"), device)),
        text_encoder_(models::make_text_encoder(settings.at("text_encoder"), device)),
        texts_(*text_encoder_) {
    limits_.short_side = short_side_of(options);
    limits_.num_video_frames = options.num_video_frames;
    limits_.fps = options.fps;
    limits_.temporal_compression = tokenizer_->temporal_compression();
    limits_.side_multiple = 2 * tokenizer_->spatial_compression();
    if (limits_.short_side < limits_.side_multiple) {
      throw ConfigError("--short-side: got {}, want at least {}", limits_.short_side, limits_.side_multiple);
    }
  }

  [[nodiscard]] const models::VideoTokenizer& tokenizer() const { return *tokenizer_; }
  [[nodiscard]] const models::TextEncoder& text_encoder() const { return *text_encoder_; }

  // Thread safe. Media that cannot be read are skipped; any other error is thrown.
  Result run(std::uint64_t index) {
    const c10::InferenceMode inference;
    at::set_num_threads(1);  // of this thread: the workers fill the cores
    Result result;
    result.skipped.name = fmt::format("item {}", index);
    try {
      const data::SourceItem item = source_.item(index);
      result.skipped.name = item.name;
      result.has_caption = item.caption.has_value();
      result.parts = encode(index, item);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kData) throw;
      result.skipped.reason = error.what();
    }
    return result;
  }

 private:
  data::SampleParts encode(std::uint64_t index, const data::SourceItem& item) {
    const data::SourceMedia media = source_.load(index, limits_);
    const at::Tensor rgb_CTHW = media.rgb_THW3.to(device_).permute({3, 0, 1, 2});
    // One copy straight into the layout that encoders want: a clip's pixels take hundreds of megabytes.
    at::Tensor pixels_CTHW = at::empty(rgb_CTHW.sizes(), rgb_CTHW.options().dtype(at::kFloat));
    pixels_CTHW.copy_(rgb_CTHW).div_(127.5).sub_(1.0);
    data::SampleDescription description;
    description.fps = media.fps;
    description.caption = item.caption.value_or("");
    description.source = item.name;
    description.num_frames = media.rgb_THW3.size(0);
    description.image_height = media.rgb_THW3.size(1);
    description.image_width = media.rgb_THW3.size(2);
    description.original_height = media.original_height;
    description.original_width = media.original_width;
    return data::make_sample_parts(data::sample_key(index), tokenizer_->encode(pixels_CTHW),
                                   texts_.encode(description.caption), description);
  }

  const data::Source& source_;
  at::Device device_;
  std::unique_ptr<models::VideoTokenizer> tokenizer_;
  std::unique_ptr<models::TextEncoder> text_encoder_;
  TextCache texts_;
  data::LoadLimits limits_;
};

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

std::uint64_t next_item(const RunState& state) {
  return state.records().empty() ? 0 : state.records().back().next_item;
}

// From the first item that is in no complete shard to the last. Gives what was skipped after the last shard.
std::vector<Skipped> write_shards(const data::Source& source, Encoder& encoder, const PrepareOptions& options,
                                  const RunContext& context, RunState& state) {
  std::vector<std::string> finished;
  for (const ShardRecord& record : state.records()) finished.push_back(record.shard);
  const std::uint64_t first = next_item(state);
  ShardRecord open;  // of the shard being filled
  open.next_item = first;
  const auto commit = [&](const std::string& shard, const std::vector<data::SampleEntry>& samples) {
    ShardRecord record = std::exchange(open, {});
    open.next_item = record.next_item;
    record.shard = shard;
    record.samples = samples;
    state.add(std::move(record));
  };
  data::ShardWriter writer(
      options.output_dir,
      {.max_count = options.shard_max_count, .max_bytes = static_cast<std::uint64_t>(options.shard_max_bytes)}, 0,
      finished, commit);
  Progress progress("prepare", source.size(), "samples", first);
  const SerialOperations serial;
  data::OrderedWork<Result> work(first, source.size(), static_cast<std::uint64_t>(2 * options.num_workers + 2));
  const data::WorkerThreads<Result> workers(options.num_workers, work,
                                            [&](std::uint64_t index) { return encoder.run(index); });
  for (std::uint64_t index = first; std::optional<Result> result = work.next(); ++index) {
    // A shard that this sample does not fit into is committed first, without it.
    if (result->parts) {
      writer.add(*result->parts);
      open.num_without_caption += result->has_caption ? 0 : 1;
    } else {
      open.skipped.push_back(std::move(result->skipped));
    }
    open.next_item = index + 1;
    if (context.show_progress) progress.advance(1);
    if (context.on_progress) context.on_progress(index + 1, source.size());
  }
  writer.close_shard();
  if (context.show_progress) progress.finish();
  return std::move(open.skipped);
}

data::DatasetCard make_card(const PrepareOptions& options, const Settings& settings, const Encoder& encoder,
                            const std::vector<data::SampleEntry>& samples) {
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
  card.source = options.input;
  card.settings = settings;
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

Report prepare(const data::Source& source, const PrepareOptions& options, const RunContext& context,
               const Settings& settings) {
  Encoder encoder(source, options, settings, context.device);
  if (options.require_captions) check_captions(source);
  RunState state(options.output_dir, settings);
  Report report;
  for (const ShardRecord& record : state.records())
    report.num_continued += static_cast<std::int64_t>(record.samples.size());
  if (next_item(state) > 0) {
    log::info("prepare", "{}: continuing a stopped run after {} of {} items", options.output_dir.string(),
              next_item(state), source.size());
  }
  const std::vector<Skipped> skipped_at_end = write_shards(source, encoder, options, context, state);
  std::vector<std::string> shards;
  std::vector<data::SampleEntry> samples;
  for (const ShardRecord& record : state.records()) {
    shards.push_back(record.shard);
    samples.insert(samples.end(), record.samples.begin(), record.samples.end());
    report.skipped.insert(report.skipped.end(), record.skipped.begin(), record.skipped.end());
    report.num_without_caption += record.num_without_caption;
  }
  report.skipped.insert(report.skipped.end(), skipped_at_end.begin(), skipped_at_end.end());
  if (samples.empty()) {
    const std::string first =
        report.skipped.empty() ? "none" : fmt::format("{}: {}", report.skipped[0].name, report.skipped[0].reason);
    throw DataError("--input {}: got {} items of which none can be read, want at least one; the first: {}",
                    options.input, source.size(), first);
  }
  data::DatasetCard card = make_card(options, settings, encoder, samples);
  card.num_without_caption = report.num_without_caption;
  card.num_skipped = static_cast<std::int64_t>(report.skipped.size());
  report.num_samples = card.num_samples;
  report.num_images = card.num_images;
  report.num_clips = card.num_clips;
  data::finish_dataset(options.output_dir, shards, std::move(samples), card);
  state.remove();
  return report;
}

}  // namespace

Report run(const PrepareOptions& options, const RunContext& context) {
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<data::Source> source = data::open_source(options.input, options.seed);
  const Settings settings = make_settings(options, *source);
  const std::optional<data::DatasetCard> card = data::load_card(options.output_dir);
  Report report = card ? report_complete(options, *card, settings) : prepare(*source, options, context, settings);
  report.folder = options.output_dir;
  report.source = source->description();
  measure_shards(options.output_dir, report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace dfm::prepare
