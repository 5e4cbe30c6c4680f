#include "dfm/data/dataset.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/index.h"
#include "data/open_folder.h"
#include "data/parts.h"
#include "data/shard_files.h"
#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/data/shard_writer.h"
#include "dfm/formats/nv_meta.h"
#include "dfm/formats/torch_file.h"

namespace dfm::data {
namespace {

constexpr double kDefaultFps = 30;

class IndexedDataset : public Dataset {
 public:
  IndexedDataset(std::filesystem::path folder, std::vector<std::string> shards, std::vector<SampleEntry> entries,
                 DatasetCard card, std::string split)
      : folder_(std::move(folder)),
        split_(std::move(split)),
        files_(folder_, std::move(shards)),
        entries_(std::move(entries)),
        card_(std::move(card)) {
    for (const SampleEntry& entry : entries_) {
      fingerprint_ = fnv1a64(fmt::format("{}:{}x{}x{}x{},{}x{};", entry.key, entry.channels, entry.frames, entry.height,
                                         entry.width, entry.text_length, entry.text_width),
                             fingerprint_);
    }
  }

  [[nodiscard]] const std::filesystem::path& folder() const override { return folder_; }
  [[nodiscard]] std::string split() const override { return split_; }
  [[nodiscard]] const std::vector<SampleEntry>& entries() const override { return entries_; }
  [[nodiscard]] const DatasetCard& card() const override { return card_; }
  [[nodiscard]] std::uint64_t fingerprint() const override { return fingerprint_; }

  [[nodiscard]] Sample read(std::size_t index) const override {
    const SampleEntry& entry = entries_.at(index);
    Sample sample;
    const JsonPart json = parse_json_part(files_.read(entry, entry.json, "json"), files_.path_of(entry, "json"));
    sample.fps = json.fps > 0 ? json.fps : kDefaultFps;
    sample.caption = json.caption;
    const std::string problem = read_tensors(entry, sample);
    if (!problem.empty()) {
      sample.problem = fmt::format("sample {} ({}): {}", entry.key, files_.name(entry.shard), problem);
      sample.latent_CTHW.reset();
      sample.text_LE.reset();
    }
    return sample;
  }

 private:
  // What is wrong with the sample, or "".
  std::string read_tensors(const SampleEntry& entry, Sample& sample) const {
    const std::string pth = files_.read(entry, entry.pth, "pth");
    const at::Tensor stored = formats::load_pth_tensor(as_bytes(pth), files_.path_of(entry, "pth"));
    const auto latent = squeeze_latent(stored);
    if (!latent) return fmt::format("latent: got shape {}, want [1, C, T, H, W]", shape_text(stored));
    const std::string pickle = files_.read(entry, entry.pickle, "pickle");
    const at::Tensor stored_text = formats::load_pickle_tensor(as_bytes(pickle), files_.path_of(entry, "pickle"));
    const auto text = squeeze_text(stored_text);
    if (!text) return fmt::format("text: got shape {}, want [1, L, E]", shape_text(stored_text));
    check_against_index(entry, *latent, *text);
    if (entry.channels != card_.latent_channels) {
      return fmt::format("latent: got {} channels, want {}", entry.channels, card_.latent_channels);
    }
    if (entry.text_width != card_.text_width) {
      return fmt::format("text: got width {}, want {}", entry.text_width, card_.text_width);
    }
    if (std::string problem = value_problem(*latent, kLatentLimit); !problem.empty()) return "latent: " + problem;
    sample.latent_CTHW = latent->to(at::kBFloat16).contiguous();
    // A copy: the padding rows need not stay in memory.
    sample.text_LE = text->slice(0, 0, entry.text_length).to(at::kBFloat16, /*non_blocking=*/false, /*copy=*/true);
    if (std::string problem = value_problem(sample.text_LE, 0); !problem.empty()) return "text: " + problem;
    return "";
  }

  void check_against_index(const SampleEntry& entry, const at::Tensor& latent, const at::Tensor& text) const {
    const bool latent_fits = latent.sizes() == at::IntArrayRef{entry.channels, entry.frames, entry.height, entry.width};
    const bool text_fits = text.size(1) == entry.text_width && count_text_rows(text) == entry.text_length;
    if (latent_fits && text_fits) return;
    throw DataError(
        "{}: got latent {} and text of {} rows, want what the index says ({}x{}x{}x{}, {}); hint: remove {}",
        files_.path_of(entry, "pth"), shape_text(latent), count_text_rows(text), entry.channels, entry.frames,
        entry.height, entry.width, entry.text_length, kIndexFileName);
  }

  std::filesystem::path folder_;
  std::string split_;
  ShardFiles files_;
  std::vector<SampleEntry> entries_;
  DatasetCard card_;
  std::uint64_t fingerprint_ = fnv1a64("");
};

// Keeps the samples of the split, sorted by key.
std::vector<SampleEntry> select_split(const std::filesystem::path& folder, const Index& index,
                                      const std::string& split) {
  const std::optional<formats::NvMeta> meta = formats::read_nv_meta(folder);
  if (!meta && split != "train") {
    throw DataError("{}: got no .nv-meta/split.yaml, want one that says what split {} is", folder.string(), split);
  }
  std::vector<char> is_in_split(index.shards.size(), meta ? 0 : 1);
  if (meta) {
    const auto part = meta->splits.find(split);
    if (part == meta->splits.end() || part->second.empty()) {
      throw DataError("{}/.nv-meta/split.yaml: got no shard in split {}, want at least one", folder.string(), split);
    }
    for (const std::string& name : part->second) {
      if (meta->excludes(name)) continue;
      const auto shard = std::find_if(index.shards.begin(), index.shards.end(),
                                      [&](const Index::Shard& candidate) { return candidate.name == name; });
      if (shard == index.shards.end()) {
        throw DataError("{}: got no such shard, want it (split {} of .nv-meta/split.yaml)", (folder / name).string(),
                        split);
      }
      is_in_split[static_cast<std::size_t>(shard - index.shards.begin())] = 1;
    }
  }
  std::vector<SampleEntry> entries;
  for (const SampleEntry& entry : index.samples) {
    if (is_in_split[entry.shard] == 0) continue;
    if (meta && meta->excludes(index.shards[entry.shard].name, entry.key)) continue;
    entries.push_back(entry);
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  const auto twice =
      std::adjacent_find(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.key == b.key; });
  if (twice != entries.end()) {
    throw DataError("{}: got sample {} in {} and in {}, want every key once", folder.string(), twice->key,
                    index.shards[twice->shard].name, index.shards[std::next(twice)->shard].name);
  }
  if (entries.empty()) throw DataError("{}: got no sample in split {}, want at least one", folder.string(), split);
  return entries;
}

// A folder of DFM: its only tokenizer, and the T5 that has this width.
DatasetCard foreign_card(const std::filesystem::path& folder, const Index& index) {
  DatasetCard card;
  card.tokenizer = "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8";
  card.source = folder.string();
  card.num_samples = static_cast<std::int64_t>(index.samples.size());
  std::map<double, std::int64_t> clips_at;
  const SampleEntry* good = nullptr;
  for (const SampleEntry& entry : index.samples) {
    if (good == nullptr && entry.channels > 0 && entry.text_width > 0) good = &entry;
    ++(entry.frames > 1 ? card.num_clips : card.num_images);
    if (entry.frames > 1 && entry.fps > 0) ++clips_at[entry.fps];
  }
  if (good == nullptr) {
    throw DataError("{}: got no sample with a latent [1, C, T, H, W] and text [1, L, E], want at least one",
                    folder.string());
  }
  card.latent_channels = good->channels;
  card.text_width = good->text_width;
  constexpr std::int64_t kT5Width = 1024;  // t5-11b and t5-large
  card.text_encoder = card.text_width == kT5Width ? "google-t5/t5-11b" : "unknown";
  std::int64_t most = 0;
  for (const auto& [fps, count] : clips_at) {
    if (count > most) most = count, card.fps = fps;
  }
  return card;
}

}  // namespace

std::shared_ptr<Dataset> open_folder(const std::filesystem::path& folder, const std::string& split) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw DataError("data set {}: got no such folder, want one that `dfm prepare` or DFM wrote, or a Metadataset YAML",
                    folder.string());
  }
  std::optional<DatasetCard> card = load_card(folder);
  if (!card && std::filesystem::exists(folder / kUnfinishedName, ignored)) {
    throw DataError("data set {}: got an unfinished one, want it whole; hint: run its `dfm prepare` again to continue",
                    folder.string());
  }
  const std::vector<std::string> shards = list_shards(folder);
  if (shards.empty()) {
    throw DataError(
        "data set {}: got a folder without shards (*.tar), want a webdataset; hint: `dfm prepare` makes one",
        folder.string());
  }
  const Index index = load_or_build_index(folder, shards);
  if (card && card->num_samples != static_cast<std::int64_t>(index.samples.size())) {
    throw DataError("data set {}: got {} samples, want {} as {} says; hint: a shard is missing or added",
                    folder.string(), index.samples.size(), card->num_samples, DatasetCard::kFileName);
  }
  if (!card) card = foreign_card(folder, index);
  return std::make_shared<IndexedDataset>(folder, shards, select_split(folder, index, split), std::move(*card), split);
}

}  // namespace dfm::data
