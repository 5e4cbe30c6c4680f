#include <ATen/ATen.h>
#include <c10/util/ParallelGuard.h>

#include <algorithm>
#include <array>
#include <thread>

#include "data/index.h"
#include "data/parts.h"
#include "data/shard_files.h"
#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/base/log.h"
#include "dfm/base/progress.h"
#include "dfm/data/ordered_work.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"

namespace dfm::data {
namespace {

SampleEntry::Part* part_of(SampleEntry& entry, const std::string& part) {
  if (part == "json") return &entry.json;
  if (part == "pth") return &entry.pth;
  if (part == "pickle") return &entry.pickle;
  return nullptr;
}

// Members of a sample are adjacent, as webdataset wants them. Parts of other names are left alone.
void list_samples(const std::string& path, const std::vector<formats::TarMember>& members, std::uint32_t shard,
                  std::vector<SampleEntry>& samples) {
  const std::size_t first = samples.size();
  for (const formats::TarMember& member : members) {
    const std::optional<formats::SampleName> name = formats::split_sample_name(member.name);
    if (!name) continue;
    if (samples.size() == first || samples.back().key != name->key) {
      samples.emplace_back().key = name->key;
      samples.back().shard = shard;
    }
    SampleEntry::Part* part = part_of(samples.back(), name->part);
    if (part == nullptr) continue;
    if (part->offset != 0) throw DataError("{}: got {} twice, want it once", path, member.name);
    *part = {.offset = member.data_offset, .size = member.size};
  }
  for (std::size_t i = first; i < samples.size(); ++i) {
    for (const char* part : {"json", "pth", "pickle"}) {
      if (part_of(samples[i], part)->offset == 0) {
        throw DataError("{}: got sample {} without .{}, want .json, .pth and .pickle; hint: `dfm prepare` makes them",
                        path, samples[i].key, part);
      }
    }
  }
}

// Sizes, text length, fps and checksums of a sample. A latent or text of an impossible shape leaves sizes of 0: reading
// the sample says what is wrong with it.
SampleEntry inspect(const ShardFiles& files, SampleEntry entry) {
  const c10::ParallelGuard serial(true);
  const auto read = [&](SampleEntry::Part& part, const char* name) {
    std::string bytes = files.read(entry, part, name);
    part.checksum = crc32c(as_bytes(bytes));
    return bytes;
  };
  const std::string json = read(entry.json, "json");
  entry.fps = parse_json_part(json, files.path_of(entry, "json")).fps;
  const std::string pth = read(entry.pth, "pth");
  const auto latent = squeeze_latent(formats::load_pth_tensor(as_bytes(pth), files.path_of(entry, "pth")));
  entry.channels = latent ? latent->size(0) : 0;
  entry.frames = latent ? latent->size(1) : 0;
  entry.height = latent ? latent->size(2) : 0;
  entry.width = latent ? latent->size(3) : 0;
  const std::string pickle = read(entry.pickle, "pickle");
  const auto text = squeeze_text(formats::load_pickle_tensor(as_bytes(pickle), files.path_of(entry, "pickle")));
  entry.text_width = text ? text->size(1) : 0;
  entry.text_length = text ? count_text_rows(*text) : 0;
  return entry;
}

}  // namespace

Index scan_shards(const std::filesystem::path& folder, const std::vector<std::string>& shards) {
  Index index;
  std::vector<SampleEntry> found;
  for (const std::string& name : shards) {
    const auto shard = static_cast<std::uint32_t>(index.shards.size());
    const std::filesystem::path path = folder / name;
    list_samples(path.string(), formats::list_tar(path), shard, found);
    index.shards.emplace_back().name = name;
  }
  // All bytes are read, once: damage is found before a run starts, and every later read is checked against a checksum.
  log::info("data", "{}: reading all samples once to index them ({} in {} tars)", folder.string(), found.size(),
            shards.size());
  const ShardFiles files(folder, shards);
  constexpr std::uint64_t kWindow = 64;
  const std::int64_t num_threads = std::clamp<std::int64_t>(std::thread::hardware_concurrency(), 1, 8);
  OrderedWork<SampleEntry> work(0, found.size(), kWindow);
  const WorkerThreads<SampleEntry> threads(num_threads, work,
                                           [&](std::uint64_t i) { return inspect(files, found[i]); });
  Progress progress("index", found.size(), "samples");
  while (std::optional<SampleEntry> entry = work.next()) {
    index.samples.push_back(std::move(*entry));
    progress.advance(1);
  }
  progress.finish();
  fill_probes(folder, index);
  return index;
}

}  // namespace dfm::data
