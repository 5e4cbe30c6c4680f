#include "dfm/data/shard_writer.h"

#include <algorithm>
#include <map>
#include <optional>

#include "data/index.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/nv_meta.h"
#include "dfm/formats/tar.h"

namespace dfm::data {

struct ShardWriter::State {
  std::filesystem::path folder;
  ShardLimits limits;
  std::int64_t rank = 0;
  std::vector<std::string> shards;
  BeforeCommit before_commit;
  // Of the shard being filled:
  std::optional<formats::TarWriter> tar;
  std::string name;
  std::uint64_t num_bytes = 0;
  std::vector<SampleEntry> samples;
  std::vector<std::uint64_t> sample_offsets;

  [[nodiscard]] std::filesystem::path temporary() const { return folder / (name + ".tmp"); }

  [[nodiscard]] bool is_full_before(std::uint64_t more_bytes) const {
    return !samples.empty() &&
           (static_cast<std::int64_t>(samples.size()) >= limits.max_count || num_bytes + more_bytes > limits.max_bytes);
  }

  void open_shard() {
    name = shard_name(rank, static_cast<std::int64_t>(shards.size()));
    tar.emplace(temporary());
    num_bytes = 0;
    samples.clear();
    sample_offsets.clear();
  }
};

std::string ShardWriter::shard_name(std::int64_t rank, std::int64_t number) {
  return fmt::format("rank{}-{:06}.tar", rank, number);
}

ShardWriter::ShardWriter(std::filesystem::path folder, ShardLimits limits, std::int64_t rank,
                         std::vector<std::string> finished_shards, BeforeCommit before_commit)
    : state_(std::make_unique<State>()) {
  state_->folder = std::move(folder);
  state_->limits = limits;
  state_->rank = rank;
  state_->shards = std::move(finished_shards);
  state_->before_commit = std::move(before_commit);
}

ShardWriter::~ShardWriter() = default;

const std::vector<std::string>& ShardWriter::shards() const { return state_->shards; }

void ShardWriter::add(const SampleParts& parts) {
  if (state_->is_full_before(parts.num_bytes())) close_shard();
  if (!state_->tar) state_->open_shard();
  SampleEntry entry = parts.entry;
  // Readers group the adjacent parts of a key; webdataset's own writer sorts them by name, too.
  const auto add_part = [&](SampleEntry::Part& part, const char* extension, const std::string& bytes) {
    const formats::TarMember member = state_->tar->add(entry.key + extension, as_bytes(bytes));
    part.offset = member.data_offset;
    return member.header_offset;
  };
  state_->sample_offsets.push_back(add_part(entry.json, ".json", parts.json));
  add_part(entry.pickle, ".pickle", parts.pickle);
  add_part(entry.pth, ".pth", parts.pth);
  state_->num_bytes += parts.num_bytes();
  state_->samples.push_back(std::move(entry));
}

void ShardWriter::close_shard() {
  State& state = *state_;
  if (!state.tar) return;
  state.sample_offsets.push_back(state.tar->offset());
  state.tar->close();
  state.tar.reset();
  const std::filesystem::path path = state.folder / state.name;
  formats::write_tar_index(state.folder / (state.name + ".idx"), state.sample_offsets);
  if (state.before_commit) state.before_commit(state.name, state.samples);
  rename_durably(state.temporary(), path);
  state.shards.push_back(state.name);
}

void finish_dataset(const std::filesystem::path& folder, const std::vector<std::string>& shards,
                    std::vector<SampleEntry> samples, const DatasetCard& card) {
  formats::NvMeta meta;
  Index index;
  for (const std::string& name : shards) {
    index.shards.emplace_back().name = name;
    meta.shard_counts.emplace_back(name, 0);
  }
  for (const SampleEntry& entry : samples) ++meta.shard_counts.at(entry.shard).second;
  meta.splits = {{"train", shards}, {"val", {}}, {"test", {}}};
  index.samples = std::move(samples);
  std::stable_sort(index.samples.begin(), index.samples.end(),
                   [](const auto& a, const auto& b) { return a.shard < b.shard; });
  fill_probes(folder, index);
  formats::write_nv_meta(folder, meta);
  write_file_atomically(folder / kIndexFileName, encode_index(index));
  write_file_atomically(folder / DatasetCard::kFileName, to_json(card));
}

}  // namespace dfm::data
