#include "inspect/dataset.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <set>

#include "dfm/base/error.h"
#include "dfm/data/shard_writer.h"
#include "dfm/formats/nv_meta.h"
#include "inspect/statistics.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostRead = 64;  // samples whose content is read

void add_card(Facts& facts, const data::DatasetCard& card) {
  facts["tokenizer"] = card.tokenizer;
  facts["text_encoder"] = card.text_encoder;
  facts["compression"] =
      fmt::format("{}x{}x{}", card.temporal_compression, card.spatial_compression, card.spatial_compression);
  facts["latent_channels"] = card.latent_channels;
  facts["latent_statistics_frames"] = card.latent_statistics_frames;
  facts["text_width"] = card.text_width;
  if (card.fps > 0) facts["fps"] = card.fps;
  if (!card.source.empty()) facts["source"] = card.source;
  if (!card.dfm_version.empty()) {
    facts["without_caption"] = card.num_without_caption;
    facts["skipped"] = card.num_skipped;
    facts["made_by"] = "dfm " + card.dfm_version;
  }
  if (!card.settings.empty()) facts["settings"] = card.settings;
}

void add_shards(Facts& facts, const std::vector<fs::path>& tars) {
  std::uint64_t bytes = 0;
  for (const fs::path& tar : tars) bytes += fs::file_size(tar);
  facts["num_shards"] = tars.size();
  facts["shard_bytes"] = bytes;
}

void add_splits(Facts& facts, const fs::path& folder) {
  const std::optional<formats::NvMeta> meta = formats::read_nv_meta(folder);
  if (!meta) return;
  std::map<std::string, std::uint64_t> counts(meta->shard_counts.begin(), meta->shard_counts.end());
  Facts rows = Facts::array();
  for (const auto& [name, shards] : meta->splits) {
    std::uint64_t num_samples = 0;
    for (const std::string& shard : shards) num_samples += counts.contains(shard) ? counts.at(shard) : 0;
    Facts row{{"split", name}, {"shards", shards.size()}};
    if (!counts.empty()) row["samples"] = num_samples;
    rows.push_back(std::move(row));
  }
  facts["splits"] = std::move(rows);
  if (!meta->exclude.empty()) facts["excluded"] = meta->exclude.size();
}

// Parts of raw samples: name, count and bytes.
void add_parts(Facts& facts, const std::vector<TarSample>& samples) {
  std::map<std::string, std::pair<std::int64_t, std::uint64_t>> parts;
  for (const TarSample& sample : samples) {
    for (const TarSample::Part& part : sample.parts) {
      ++parts[part.name].first;
      parts[part.name].second += part.size;
    }
  }
  Facts rows = Facts::array();
  for (const auto& [name, sum] : parts) {
    rows.push_back({{"part", name}, {"samples", sum.first}, {"bytes", sum.second}});
  }
  facts["parts"] = std::move(rows);
}

void add_keys(Facts& facts, const std::string& first, const std::string& last) {
  facts["first_key"] = first;
  facts["last_key"] = last;
}

void note(std::string& problem, const std::string& text) {
  if (problem.empty()) problem = text;
}

void read_some(const data::Dataset& dataset, Statistics& statistics, std::string& problem) {
  for (const std::size_t i : spread(dataset.entries().size(), kMostRead)) {
    try {
      const data::Sample sample = dataset.read(i);
      if (sample.problem.empty()) {
        statistics.add_content(sample.latent_CTHW, sample.caption);
      } else {
        statistics.add_bad();
      }
    } catch (const DataError& error) {
      statistics.add_bad();
      note(problem, error.what());
    }
  }
}

void add_opened(Facts& facts, const data::Dataset& dataset, const InspectOptions& options, std::string& problem) {
  Statistics statistics(dataset.card());
  for (const data::SampleEntry& entry : dataset.entries()) {
    statistics.add_size({entry.channels, entry.frames, entry.height, entry.width, entry.text_length});
  }
  read_some(dataset, statistics, problem);
  statistics.report(facts, options.task_encoder_seq_length);
  facts["fingerprint"] = fmt::format("{:016x}", dataset.fingerprint());
  if (!dataset.entries().empty()) add_keys(facts, dataset.entries().front().key, dataset.entries().back().key);
}

// The card, or nothing and why.
std::optional<data::DatasetCard> card_of(const fs::path& folder, std::string& problem) {
  try {
    return data::load_card(folder);
  } catch (const DataError& error) {
    note(problem, error.what());
    return std::nullopt;
  }
}

bool is_unfinished(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / data::kUnfinishedName, ignored) &&
         !fs::exists(folder / data::DatasetCard::kFileName, ignored);
}

// Whether nothing in it was prepared: pictures and texts, not latents.
bool is_raw(const std::vector<TarSample>& samples) {
  return !samples.empty() && std::none_of(samples.begin(), samples.end(), [](const TarSample& sample) {
    return sample.find("pth") != nullptr || sample.find("pickle") != nullptr;
  });
}

}  // namespace

std::vector<std::size_t> spread(std::size_t size, std::size_t count) {
  std::vector<std::size_t> numbers;
  const std::size_t num = std::min(size, count);
  for (std::size_t i = 0; i < num; ++i) numbers.push_back(num == 1 ? 0 : i * (size - 1) / (num - 1));
  return numbers;
}

bool is_dataset_folder(const fs::path& folder) {
  std::error_code ignored;
  for (const char* name : {data::DatasetCard::kFileName, data::kUnfinishedName, ".nv-meta"}) {
    if (fs::exists(folder / name, ignored)) return true;
  }
  return !list_tars(folder).empty();
}

Facts inspect_dataset(const InspectOptions& options, std::string& problem) {
  const fs::path& path = options.path;
  Facts facts{{"path", path.string()}, {"kind", "data set"}, {"status", "complete"}};
  std::vector<fs::path> tars;
  const bool is_folder = fs::is_directory(path);
  std::optional<data::DatasetCard> card;
  if (is_folder) {
    tars = list_tars(path);
    card = card_of(path, problem);
    if (is_unfinished(path)) {
      facts["status"] = "unfinished";
      facts["hint"] = "run its `dfm prepare` again to continue; what follows is of the shards that are complete";
      add_shards(facts, tars);
      try {
        facts["num_samples"] = list_samples(tars).size();
      } catch (const DataError& error) {
        note(problem, error.what());
      }
      return facts;
    }
    if (!card && !fs::exists(path / ".nv-meta") && !tars.empty()) {
      const std::vector<TarSample> samples = list_samples(tars.front());
      if (is_raw(samples)) {
        facts["kind"] = "webdataset of raw media";
        facts["hint"] = "`dfm prepare --input` makes a data set of it";
        add_shards(facts, tars);
        const std::vector<TarSample> all = list_samples(tars);
        facts["num_samples"] = all.size();
        add_parts(facts, all);
        return facts;
      }
    }
    add_shards(facts, tars);
  } else {
    facts["kind"] = "Metadataset";
  }
  try {
    const std::shared_ptr<data::Dataset> dataset = data::Dataset::open(path);
    add_opened(facts, *dataset, options, problem);
    add_card(facts, dataset->card());
  } catch (const Error& error) {
    if (!is_folder) throw;
    note(problem, error.what());
    if (card) add_card(facts, *card);
  }
  if (is_folder) {
    try {
      add_splits(facts, path);
    } catch (const Error& error) {
      note(problem, error.what());
    }
  }
  if (!problem.empty()) {
    facts["status"] = "damaged";
    facts["problem"] = problem;
  }
  return facts;
}

Facts inspect_tar(const InspectOptions& options, std::string& problem) {
  const fs::path& path = options.path;
  Facts facts{{"path", path.string()}, {"kind", "tar"}, {"status", "complete"}};
  add_shards(facts, {path});
  facts.erase("num_shards");
  const std::vector<TarSample> samples = list_samples(path);
  facts["num_samples"] = samples.size();
  if (!samples.empty()) add_keys(facts, samples.front().key, samples.back().key);
  add_parts(facts, samples);
  if (samples.empty() || is_raw(samples)) return facts;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const std::optional<data::DatasetCard> card = card_of(folder, problem);
  Statistics statistics(card.value_or(data::DatasetCard{}));
  const std::vector<std::size_t> read = spread(samples.size(), kMostRead);
  const std::set<std::size_t> is_read(read.begin(), read.end());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    try {
      const StoredSample stored = read_stored(samples[i]);
      if (!stored.latent_CTHW.defined()) continue;
      statistics.add_size({stored.latent_CTHW.size(0), stored.latent_CTHW.size(1), stored.latent_CTHW.size(2),
                           stored.latent_CTHW.size(3), stored.text_length});
      if (is_read.contains(i)) statistics.add_content(stored.latent_CTHW, stored.caption);
    } catch (const DataError& error) {
      statistics.add_bad();
      note(problem, error.what());
    }
  }
  const std::size_t num_samples = samples.size();
  statistics.report(facts, options.task_encoder_seq_length);
  facts["num_samples"] = num_samples;
  if (card) add_card(facts, *card);
  if (!problem.empty()) {
    facts["status"] = "damaged";
    facts["problem"] = problem;
  }
  return facts;
}

}  // namespace dfm::inspect
