#pragma once
// dfm-index.bin: where every sample of a webdataset folder lies. A cache of what the tars say, checked against them and
// rebuilt when it does not fit. Little endian, no padding; text is u32 length + bytes:
//   "DFMINDEX", u32 version 1
//   u64 shards,  each: text name, u64 size, u32 probe
//   u64 samples, each: text key, u32 shard; json, pickle, pth each: u64 offset, u64 size, u32 crc32c;
//                      i64 channels, frames, height, width, text_length, text_width; f64 fps
//   u32 crc32c of all before
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dfm/data/dataset.h"

namespace dfm::data {

inline constexpr const char* kIndexFileName = "dfm-index.bin";

struct Index {
  struct Shard {
    std::string name;  // relative to the folder
    std::uint64_t size = 0;
    // crc32c over pieces of the shard's first, middle and last sample: a shard written anew is noticed although its
    // size is the same. (Times of change are not used: copying a folder changes them.)
    std::uint32_t probe = 0;
  };
  std::vector<Shard> shards;         // sorted by name
  std::vector<SampleEntry> samples;  // by shard, in file order
};

std::string encode_index(const Index& index);
// Damage, another version and places outside the shards are a DataError.
Index decode_index(std::span<const std::byte> bytes, const std::string& name);

// Reads the sizes and probes of `index`'s shards; `samples` must be there.
void fill_probes(const std::filesystem::path& folder, Index& index);

// Names of the shards in the folder, relative, sorted by bytes. A compressed shard (.tgz, .tar.gz) is a DataError.
std::vector<std::string> list_shards(const std::filesystem::path& folder);

// The index of the folder: the file beside the data or in the user's cache when it fits the shards, else made by
// reading the tars once, and stored.
Index load_or_build_index(const std::filesystem::path& folder, const std::vector<std::string>& shards);

// Reads all samples of the shards.
Index scan_shards(const std::filesystem::path& folder, const std::vector<std::string>& shards);

}  // namespace dfm::data
