#include "data/index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/base/log.h"

namespace dfm::data {
namespace {

static_assert(std::endian::native == std::endian::little, "dfm-index.bin is written as it lies in memory");
constexpr std::string_view kMagic = "DFMINDEX";
constexpr std::uint32_t kVersion = 1;

class Writer {
 public:
  template <typename T>
  requires std::is_arithmetic_v<T>
  void operator()(const T& value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void operator()(const std::string& text) {
    (*this)(static_cast<std::uint32_t>(text.size()));
    bytes_ += text;
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_{kMagic};
};

class Reader {
 public:
  Reader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}
  template <typename T>
  requires std::is_arithmetic_v<T>
  void operator()(T& value) { std::memcpy(&value, need(sizeof value).data(), sizeof value); }
  void operator()(std::string& text) {
    std::uint32_t size = 0;
    (*this)(size);
    text = need(size);
  }
  std::string_view need(std::size_t size) {
    if (size > bytes_.size()) throw DataError("{}: got an index that is cut short, want a whole one", name_);
    const std::string_view piece = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return piece;
  }
  [[nodiscard]] std::size_t left() const { return bytes_.size(); }

 private:
  std::string_view bytes_;
  const std::string& name_;
};

// One order for writing and reading.
template <typename Visit, typename Shard>
void visit_shard(Visit& visit, Shard& shard) {
  visit(shard.name), visit(shard.size), visit(shard.probe);
}
template <typename Visit, typename Entry>
void visit_sample(Visit& visit, Entry& entry) {
  visit(entry.key), visit(entry.shard);
  for (auto* part : {&entry.json, &entry.pickle, &entry.pth}) {
    visit(part->offset), visit(part->size), visit(part->checksum);
  }
  visit(entry.channels), visit(entry.frames), visit(entry.height), visit(entry.width);
  visit(entry.text_length), visit(entry.text_width), visit(entry.fps);
}

void check_places(const Index& index, const std::string& name) {
  for (const SampleEntry& entry : index.samples) {
    const bool known = entry.shard < index.shards.size();
    for (const SampleEntry::Part* part : {&entry.json, &entry.pickle, &entry.pth}) {
      const std::uint64_t shard_size = known ? index.shards[entry.shard].size : 0;
      if (part->size > shard_size || part->offset > shard_size - part->size) {
        throw DataError("{}: got sample {} outside its shard, want it inside", name, entry.key);
      }
    }
    constexpr std::int64_t kMost = std::int64_t{1} << 32;
    for (const std::int64_t size :
         {entry.channels, entry.frames, entry.height, entry.width, entry.text_length, entry.text_width}) {
      if (size < 0 || size > kMost)
        throw DataError("{}: got size {} for sample {}, want 0 to {}", name, size, entry.key, kMost);
    }
  }
}

std::uint32_t probe_shard(const File& file, std::span<const SampleEntry> samples) {
  std::uint32_t crc = 0;
  if (samples.empty()) return crc;
  std::array<std::byte, 4096> buffer;
  const auto add = [&](std::uint64_t offset, std::uint64_t size) {
    const auto piece = std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(size, buffer.size())));
    file.read_at(offset, piece);
    crc = crc32c(piece, crc);
  };
  for (const std::size_t i : {std::size_t{0}, samples.size() / 2, samples.size() - 1}) {
    const SampleEntry& entry = samples[i];
    add(entry.json.offset, entry.json.size);
    add(entry.pickle.offset, entry.pickle.size);
    add(entry.pth.offset + entry.pth.size / 2, entry.pth.size - entry.pth.size / 2);
  }
  return crc;
}

// The samples of each shard are adjacent.
template <typename Visit>
void for_each_shard(const Index& index, Visit&& visit) {
  auto first = index.samples.begin();
  for (std::size_t shard = 0; shard < index.shards.size(); ++shard) {
    const auto last = std::find_if(first, index.samples.end(), [&](const auto& entry) { return entry.shard != shard; });
    visit(shard, std::span(first, last));
    first = last;
  }
}

std::string why_not_fitting(const std::filesystem::path& folder, const std::vector<std::string>& shards,
                            const Index& index) {
  if (!std::equal(shards.begin(), shards.end(), index.shards.begin(), index.shards.end(),
                  [](const std::string& name, const Index::Shard& shard) { return name == shard.name; })) {
    return "the shards are others";
  }
  std::string problem;
  for_each_shard(index, [&](std::size_t i, std::span<const SampleEntry> samples) {
    if (!problem.empty()) return;
    const Index::Shard& shard = index.shards[i];
    const File file(folder / shard.name, File::Mode::kRead);
    if (file.size() != shard.size || probe_shard(file, samples) != shard.probe) problem = shard.name + " has changed";
  });
  return problem;
}

std::optional<Index> load_fitting(const std::filesystem::path& path, const std::filesystem::path& folder,
                                  const std::vector<std::string>& shards) {
  std::error_code ignored;
  if (path.empty() || !std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  std::string problem;
  try {
    Index index = decode_index(as_bytes(read_text_file(path)), path.string());
    problem = why_not_fitting(folder, shards, index);
    if (problem.empty()) return index;
  } catch (const DataError& error) {
    problem = error.what();
  }
  log::warning("data", "{} does not fit the shards ({}): reading them anew", path.string(), problem);
  return std::nullopt;
}

// Where the index of a folder goes that cannot be written to; empty when the user has no cache folder.
std::filesystem::path cache_path(const std::filesystem::path& folder) {
  std::filesystem::path cache;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0') {
    cache = xdg;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    cache = std::filesystem::path(home) / ".cache";
  } else {
    return {};
  }
  const std::string absolute = std::filesystem::weakly_canonical(folder).string();
  return cache / "dfm" / fmt::format("index-{:016x}.bin", fnv1a64(absolute));
}

void store(const std::filesystem::path& folder, const Index& index) {
  const std::string bytes = encode_index(index);
  const std::filesystem::path in_cache = cache_path(folder);
  for (const std::filesystem::path& path : {folder / kIndexFileName, in_cache}) {
    if (path.empty()) continue;
    try {
      std::error_code ignored;
      if (path == in_cache) std::filesystem::create_directories(path.parent_path(), ignored);
      write_file_atomically(path, bytes);
      return;
    } catch (const Error&) {
      continue;  // read-only or full: the next place, and without any the index is made anew next time
    }
  }
  log::warning("data", "{}: the index can be stored neither there nor in the user's cache; the next run makes it again",
               folder.string());
}

}  // namespace

std::string encode_index(const Index& index) {
  Writer write;
  write(kVersion);
  write(static_cast<std::uint64_t>(index.shards.size()));
  for (const Index::Shard& shard : index.shards) visit_shard(write, shard);
  write(static_cast<std::uint64_t>(index.samples.size()));
  for (const SampleEntry& entry : index.samples) visit_sample(write, entry);
  std::string bytes = write.take();
  const std::uint32_t checksum = crc32c(as_bytes(bytes));
  bytes.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
  return bytes;
}

Index decode_index(std::span<const std::byte> bytes, const std::string& name) {
  Reader read(as_text(bytes), name);
  std::uint32_t version = 0;
  if (read.need(kMagic.size()) != kMagic) throw DataError("{}: got another file, want an index of dfm", name);
  read(version);
  if (version != kVersion) throw DataError("{}: got version {}, want {}", name, version, kVersion);
  std::uint32_t checksum = 0;
  const std::size_t body = bytes.size() < sizeof checksum ? 0 : bytes.size() - sizeof checksum;
  std::memcpy(&checksum, bytes.data() + body, std::min(bytes.size(), sizeof checksum));
  if (crc32c(bytes.first(body)) != checksum)
    throw DataError("{}: got a wrong checksum, want a file that is whole", name);
  Index index;
  std::uint64_t count = 0;
  read(count);
  for (; count > 0; --count) visit_shard(read, index.shards.emplace_back());
  read(count);
  for (; count > 0; --count) visit_sample(read, index.samples.emplace_back());
  if (read.left() != sizeof checksum) throw DataError("{}: got {} bytes too many, want none", name, read.left());
  check_places(index, name);
  return index;
}

void fill_probes(const std::filesystem::path& folder, Index& index) {
  for_each_shard(index, [&](std::size_t i, std::span<const SampleEntry> samples) {
    Index::Shard& shard = index.shards[i];
    const File file(folder / shard.name, File::Mode::kRead);
    shard.size = file.size();
    shard.probe = probe_shard(file, samples);
  });
}

std::vector<std::string> list_shards(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  std::vector<std::string> shards;
  std::error_code error;
  fs::recursive_directory_iterator entries(folder, fs::directory_options::skip_permission_denied, error);
  for (const fs::recursive_directory_iterator end; !error && entries != end; entries.increment(error)) {
    const std::string name = entries->path().lexically_relative(folder).generic_string();
    std::error_code ignored;
    if (!entries->is_regular_file(ignored)) continue;
    if (name.ends_with(".tgz") || name.ends_with(".tar.gz")) {
      throw DataError("{}: got a compressed shard, want .tar; hint: gunzip it", entries->path().string());
    }
    if (name.ends_with(".tar")) shards.push_back(name);
  }
  if (error) throw DataError("{}: cannot list the folder: {}", folder.string(), error.message());
  std::sort(shards.begin(), shards.end());
  return shards;
}

Index load_or_build_index(const std::filesystem::path& folder, const std::vector<std::string>& shards) {
  for (const std::filesystem::path& path : {folder / kIndexFileName, cache_path(folder)}) {
    if (std::optional<Index> index = load_fitting(path, folder, shards)) return std::move(*index);
  }
  Index index = scan_shards(folder, shards);
  store(folder, index);
  return index;
}

}  // namespace dfm::data
