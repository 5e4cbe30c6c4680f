#pragma once
// The shards of a folder, opened when needed and kept open, up to a limit below the usual one of a process.
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/data/dataset.h"

namespace dfm::data {

class ShardFiles {
 public:
  ShardFiles(std::filesystem::path folder, std::vector<std::string> names)
      : folder_(std::move(folder)), names_(std::move(names)) {}

  [[nodiscard]] const std::string& name(std::uint32_t shard) const { return names_.at(shard); }
  [[nodiscard]] std::string path_of(const SampleEntry& entry, const char* part) const {
    return (folder_ / names_.at(entry.shard)).string() + ": " + entry.key + "." + part;
  }

  // Thread safe. The bytes of a part, checked against its checksum.
  [[nodiscard]] std::string read(const SampleEntry& entry, const SampleEntry::Part& part, const char* part_name) const {
    std::string bytes(part.size, '\0');
    open(entry.shard)->read_at(part.offset, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()});
    if (part.checksum != 0 && crc32c(as_bytes(bytes)) != part.checksum) {
      throw DataError(
          "{}: got bytes with another checksum than when they were written or indexed, want the same; hint: the file "
          "is damaged, or was changed on purpose: then remove dfm-index.bin",
          path_of(entry, part_name));
    }
    return bytes;
  }

 private:
  static constexpr std::size_t kMostOpen = 128;

  std::shared_ptr<const File> open(std::uint32_t shard) const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const File>& file = files_[shard];
    if (!file) {
      file = std::make_shared<File>(folder_ / names_.at(shard), File::Mode::kRead);
      opened_.push_back(shard);
    }
    std::shared_ptr<const File> result = file;
    if (opened_.size() > kMostOpen) {
      files_.erase(opened_.front());
      opened_.pop_front();
    }
    return result;
  }

  const std::filesystem::path folder_;
  const std::vector<std::string> names_;
  mutable std::mutex mutex_;
  mutable std::map<std::uint32_t, std::shared_ptr<const File>> files_;
  mutable std::deque<std::uint32_t> opened_;
};

}  // namespace dfm::data
