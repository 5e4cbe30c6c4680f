#include "dfm/formats/torch_zip.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_set>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::uint32_t kLocalMagic = 0x04034b50, kCentralMagic = 0x02014b50, kEndMagic = 0x06054b50;
constexpr std::uint32_t kEnd64Magic = 0x06064b50, kLocator64Magic = 0x07064b50;
constexpr std::size_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20;
constexpr std::uint32_t kSaturated32 = 0xFFFFFFFF;
constexpr std::uint16_t kSaturated16 = 0xFFFF;
constexpr std::uint16_t kUtf8Flag = 0x0800, kDescriptorFlag = 0x0008, kEncryptedFlag = 0x0001;
constexpr std::uint16_t kZip64Extra = 1, kPaddingExtra = 0x4246;  // 'FB', as torch pads
constexpr std::uint16_t kFirstDosDate = 0x0021;                   // 1980-01-01: files do not depend on the clock

class Fields {
 public:
  explicit Fields(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T at(std::size_t offset) const {
    T value{};
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
};

template <typename T>
void put(std::string& out, T value) {
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof value);
  out.append(bytes.data(), bytes.size());
}

std::span<std::byte> writable(std::string& buffer) {
  return {reinterpret_cast<std::byte*>(buffer.data()), buffer.size()};
}

struct Directory {
  std::uint64_t offset = 0, size = 0, count = 0;
};

Directory find_directory(const ReadAt& read_at, std::uint64_t file_size, const std::string& name) {
  const std::uint64_t tail_size = std::min<std::uint64_t>(file_size, kEndSize + kSaturated16);
  std::string tail(static_cast<std::size_t>(tail_size), '\0');
  read_at(file_size - tail_size, writable(tail));
  std::size_t place = std::string::npos;
  for (std::size_t i = tail.size() >= kEndSize ? tail.size() - kEndSize + 1 : 0; i > 0 && place == std::string::npos;
       --i) {
    const Fields end(as_bytes(std::string_view(tail).substr(i - 1, kEndSize)));
    if (end.at<std::uint32_t>(0) == kEndMagic && i - 1 + kEndSize + end.at<std::uint16_t>(20) == tail.size()) {
      place = i - 1;
    }
  }
  if (place == std::string::npos) {
    throw DataError("{}: got no zip directory, want one at the end; hint: the file is cut short or no torch file",
                    name);
  }
  const Fields end(as_bytes(std::string_view(tail).substr(place, kEndSize)));
  std::uint64_t end_offset = file_size - tail_size + place;
  Directory result{end.at<std::uint32_t>(16), end.at<std::uint32_t>(12), end.at<std::uint16_t>(10)};
  // torch writes the zip64 records always, needed or not.
  if (end_offset >= kLocator64Size + kEnd64Size) {
    std::string buffer(kLocator64Size, '\0');
    read_at(end_offset - kLocator64Size, writable(buffer));
    const Fields locator{as_bytes(buffer)};
    if (locator.at<std::uint32_t>(0) == kLocator64Magic) {
      const auto end64_offset = locator.at<std::uint64_t>(8);
      if (end64_offset > end_offset - kLocator64Size - kEnd64Size) {
        throw DataError("{}: got a zip64 directory beyond the end of the file", name);
      }
      std::string record(kEnd64Size, '\0');
      read_at(end64_offset, writable(record));
      const Fields end64{as_bytes(record)};
      if (end64.at<std::uint32_t>(0) != kEnd64Magic) throw DataError("{}: got a damaged zip64 directory", name);
      const Directory wide{end64.at<std::uint64_t>(48), end64.at<std::uint64_t>(40), end64.at<std::uint64_t>(32)};
      const auto differs = [](std::uint64_t narrow, std::uint64_t value, std::uint64_t saturated) {
        return narrow != saturated && narrow != value;
      };
      if (differs(result.offset, wide.offset, kSaturated32) || differs(result.size, wide.size, kSaturated32) ||
          differs(result.count, wide.count, kSaturated16)) {
        throw DataError("{}: got two zip directories that contradict each other; hint: the file is damaged", name);
      }
      result = wide;
      end_offset = end64_offset;
    }
  }
  if (result.offset > end_offset || result.size != end_offset - result.offset ||
      result.count > result.size / kCentralSize) {
    throw DataError("{}: got a zip directory at {} of {} bytes, want one that ends at {}; hint: the file is damaged",
                    name, result.offset, result.size, end_offset);
  }
  return result;
}

// Sizes and offsets of 32 bits that are saturated stand in the zip64 extra field, in a fixed order.
void apply_zip64(std::string_view extra, std::span<std::uint64_t* const> values, const std::string& where) {
  while (extra.size() >= 4) {
    const Fields head(as_bytes(extra));
    const std::size_t size = head.at<std::uint16_t>(2);
    if (size > extra.size() - 4) break;
    if (head.at<std::uint16_t>(0) == kZip64Extra) {
      std::size_t offset = 0;
      for (std::uint64_t* value : values) {
        if (*value != kSaturated32) continue;
        if (offset + 8 > size) throw DataError("{}: got a zip64 field that is too short", where);
        *value = Fields(as_bytes(extra.substr(4))).at<std::uint64_t>(offset);
        offset += 8;
      }
      return;
    }
    extra.remove_prefix(4 + size);
  }
}

struct CentralRecord {
  ZipEntry entry;
  std::uint16_t flags = 0, method = 0;
  std::uint64_t uncompressed_size = 0;
  std::size_t length = 0;  // of the record
};

CentralRecord parse_central(std::string_view rest, const std::string& name, bool allow_compressed) {
  const Fields fields(as_bytes(rest));
  if (rest.size() < kCentralSize || fields.at<std::uint32_t>(0) != kCentralMagic) {
    throw DataError("{}: got a damaged zip directory", name);
  }
  const std::size_t name_size = fields.at<std::uint16_t>(28), extra_size = fields.at<std::uint16_t>(30);
  CentralRecord record;
  record.length = kCentralSize + name_size + extra_size + fields.at<std::uint16_t>(32);
  if (record.length > rest.size()) throw DataError("{}: got a damaged zip directory", name);
  ZipEntry& entry = record.entry;
  entry.name = std::string(rest.substr(kCentralSize, name_size));
  const std::string where = fmt::format("{}: entry {}", name, printable(entry.name));
  record.flags = fields.at<std::uint16_t>(8);
  if ((record.flags & kEncryptedFlag) != 0) throw DataError("{}: got an encrypted entry, want a plain one", where);
  record.method = fields.at<std::uint16_t>(10);
  entry.is_compressed = record.method != 0;
  if (entry.is_compressed && !allow_compressed) {
    throw DataError("{}: got compression method {}, want 0 (stored)", where, record.method);
  }
  entry.crc32 = fields.at<std::uint32_t>(16);
  entry.size = fields.at<std::uint32_t>(20);
  record.uncompressed_size = fields.at<std::uint32_t>(24);
  entry.header_offset = fields.at<std::uint32_t>(42);
  const std::array<std::uint64_t*, 3> values = {&record.uncompressed_size, &entry.size, &entry.header_offset};
  apply_zip64(rest.substr(kCentralSize + name_size, extra_size), values, where);
  if (!entry.is_compressed && record.uncompressed_size != entry.size) {
    throw DataError("{}: got {} bytes stored, want {}", where, entry.size, record.uncompressed_size);
  }
  return record;
}

// The local header must tell the same; only it says where the data start.
void check_local(const ReadAt& read_at, const Directory& directory, CentralRecord& record, const std::string& name) {
  ZipEntry& entry = record.entry;
  const std::string where = fmt::format("{}: entry {}", name, printable(entry.name));
  const std::uint64_t fixed = kLocalSize + entry.name.size();
  if (entry.header_offset > directory.offset || directory.offset - entry.header_offset < fixed) {
    throw DataError("{}: got a header at {}, want one before the directory", where, entry.header_offset);
  }
  std::string header(static_cast<std::size_t>(fixed), '\0');
  read_at(entry.header_offset, writable(header));
  const Fields fields{as_bytes(header)};
  const std::uint16_t flags = fields.at<std::uint16_t>(6);
  const bool has_descriptor = (flags & kDescriptorFlag) != 0;
  const bool same = fields.at<std::uint32_t>(0) == kLocalMagic && fields.at<std::uint16_t>(8) == record.method &&
                    flags == record.flags && fields.at<std::uint16_t>(26) == entry.name.size() &&
                    std::string_view(header).substr(kLocalSize) == entry.name;
  const auto agrees = [&](std::size_t offset, std::uint64_t want) {
    const auto got = fields.at<std::uint32_t>(offset);
    return got == want || (got == 0 && has_descriptor) || (got == kSaturated32 && offset != 14);
  };
  if (!same || !agrees(14, entry.crc32) || !agrees(18, entry.size) || !agrees(22, record.uncompressed_size)) {
    throw DataError("{}: got a local header that contradicts the directory; hint: the file is damaged", where);
  }
  entry.data_offset = entry.header_offset + fixed + fields.at<std::uint16_t>(28);
  if (entry.data_offset > directory.offset || entry.size > directory.offset - entry.data_offset) {
    throw DataError("{}: got {} bytes at {}, want them before the directory at {}; hint: the file is damaged", where,
                    entry.size, entry.data_offset, directory.offset);
  }
}

bool needs_zip64(const ZipEntry& entry) { return entry.size >= kSaturated32; }

std::size_t header_size_without_padding(const ZipEntry& entry) {
  return kLocalSize + entry.name.size() + (needs_zip64(entry) ? 20 : 0) + 4;
}

std::uint32_t saturate(std::uint64_t value) {
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(value, kSaturated32));
}

}  // namespace

ReadAt read_from(std::span<const std::byte> bytes, const std::string& name) {
  return [bytes, name](std::uint64_t offset, std::span<std::byte> out) {
    if (offset > bytes.size() || out.size() > bytes.size() - offset) {
      throw DataError("{}: got {} bytes, want at least {}; hint: the file is cut short", name, bytes.size(),
                      offset + out.size());
    }
    if (!out.empty()) std::memcpy(out.data(), bytes.data() + offset, out.size());
  };
}

std::vector<ZipEntry> read_zip_directory(const ReadAt& read_at, std::uint64_t file_size, const std::string& name,
                                         bool allow_compressed) {
  const Directory directory = find_directory(read_at, file_size, name);
  std::string content(static_cast<std::size_t>(directory.size), '\0');
  read_at(directory.offset, writable(content));
  std::string_view rest = content;
  std::vector<ZipEntry> entries;
  std::unordered_set<std::string> names;
  for (std::uint64_t i = 0; i < directory.count; ++i) {
    CentralRecord record = parse_central(rest, name, allow_compressed);
    rest.remove_prefix(record.length);
    check_local(read_at, directory, record, name);
    if (!names.insert(record.entry.name).second) {
      throw DataError("{}: entry {}: got it twice", name, printable(record.entry.name));
    }
    entries.push_back(std::move(record.entry));
  }
  if (!rest.empty()) throw DataError("{}: got {} bytes after the last zip entry", name, rest.size());
  std::vector<const ZipEntry*> by_offset;
  for (const ZipEntry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const ZipEntry* a, const ZipEntry* b) { return a->header_offset < b->header_offset; });
  for (std::size_t i = 1; i < by_offset.size(); ++i) {
    const ZipEntry& before = *by_offset[i - 1];
    if (before.data_offset + before.size > by_offset[i]->header_offset) {
      throw DataError("{}: entry {}: got it inside another one", name, printable(by_offset[i]->name));
    }
  }
  return entries;
}

ZipPlan plan_zip(const std::vector<std::pair<std::string, std::uint64_t>>& names_and_sizes) {
  ZipPlan plan;
  std::uint64_t offset = 0;
  for (const auto& [name, size] : names_and_sizes) {
    ZipEntry entry{name, offset, 0, size, 0};
    const std::uint64_t end = offset + header_size_without_padding(entry);
    entry.data_offset = (end + kZipAlignment - 1) / kZipAlignment * kZipAlignment;
    offset = entry.data_offset + size;
    plan.entries.push_back(std::move(entry));
  }
  plan.directory_offset = offset;
  return plan;
}

std::string zip_header(const ZipEntry& entry) {
  const auto extra_size =
      static_cast<std::uint16_t>(entry.data_offset - entry.header_offset - kLocalSize - entry.name.size());
  std::string out;
  put<std::uint32_t>(out, kLocalMagic);
  put<std::uint16_t>(out, needs_zip64(entry) ? 45 : 20);
  put<std::uint16_t>(out, kUtf8Flag);
  put<std::uint16_t>(out, 0);  // stored
  put<std::uint16_t>(out, 0);
  put<std::uint16_t>(out, kFirstDosDate);
  put<std::uint32_t>(out, entry.crc32);
  put<std::uint32_t>(out, saturate(entry.size));
  put<std::uint32_t>(out, saturate(entry.size));
  put<std::uint16_t>(out, static_cast<std::uint16_t>(entry.name.size()));
  put<std::uint16_t>(out, extra_size);
  out += entry.name;
  if (needs_zip64(entry)) {
    put<std::uint16_t>(out, kZip64Extra);
    put<std::uint16_t>(out, 16);
    put<std::uint64_t>(out, entry.size);
    put<std::uint64_t>(out, entry.size);
  }
  const std::uint64_t padding = entry.data_offset - entry.header_offset - out.size() - 4;
  put<std::uint16_t>(out, kPaddingExtra);
  put<std::uint16_t>(out, static_cast<std::uint16_t>(padding));
  out.append(static_cast<std::size_t>(padding), 'Z');
  return out;
}

std::string zip_directory(const ZipPlan& plan) {
  std::string out;
  for (const ZipEntry& entry : plan.entries) {
    std::string extra;
    if (needs_zip64(entry)) {
      put<std::uint64_t>(extra, entry.size);
      put<std::uint64_t>(extra, entry.size);
    }
    if (entry.header_offset >= kSaturated32) put<std::uint64_t>(extra, entry.header_offset);
    put<std::uint32_t>(out, kCentralMagic);
    put<std::uint16_t>(out, (3 << 8) | 45);  // made on Unix
    put<std::uint16_t>(out, extra.empty() ? 20 : 45);
    put<std::uint16_t>(out, kUtf8Flag);
    put<std::uint16_t>(out, 0);
    put<std::uint16_t>(out, 0);
    put<std::uint16_t>(out, kFirstDosDate);
    put<std::uint32_t>(out, entry.crc32);
    put<std::uint32_t>(out, saturate(entry.size));
    put<std::uint32_t>(out, saturate(entry.size));
    put<std::uint16_t>(out, static_cast<std::uint16_t>(entry.name.size()));
    put<std::uint16_t>(out, static_cast<std::uint16_t>(extra.empty() ? 0 : extra.size() + 4));
    put<std::uint16_t>(out, 0);  // comment
    put<std::uint16_t>(out, 0);  // disk
    put<std::uint16_t>(out, 0);
    put<std::uint32_t>(out, 0100644U << 16U);  // a regular file that its owner may write
    put<std::uint32_t>(out, saturate(entry.header_offset));
    out += entry.name;
    if (!extra.empty()) {
      put<std::uint16_t>(out, kZip64Extra);
      put<std::uint16_t>(out, static_cast<std::uint16_t>(extra.size()));
      out += extra;
    }
  }
  const std::uint64_t size = out.size(), count = plan.entries.size();
  if (plan.directory_offset >= kSaturated32 || count >= kSaturated16) {
    put<std::uint32_t>(out, kEnd64Magic);
    put<std::uint64_t>(out, kEnd64Size - 12);
    put<std::uint16_t>(out, (3 << 8) | 45);
    put<std::uint16_t>(out, 45);
    put<std::uint64_t>(out, 0);  // disks
    put<std::uint64_t>(out, count);
    put<std::uint64_t>(out, count);
    put<std::uint64_t>(out, size);
    put<std::uint64_t>(out, plan.directory_offset);
    put<std::uint32_t>(out, kLocator64Magic);
    put<std::uint32_t>(out, 0);
    put<std::uint64_t>(out, plan.directory_offset + size);
    put<std::uint32_t>(out, 1);
  }
  const auto short_count = static_cast<std::uint16_t>(std::min<std::uint64_t>(count, kSaturated16));
  put<std::uint32_t>(out, kEndMagic);
  put<std::uint32_t>(out, 0);  // disks
  put<std::uint16_t>(out, short_count);
  put<std::uint16_t>(out, short_count);
  put<std::uint32_t>(out, saturate(size));
  put<std::uint32_t>(out, saturate(plan.directory_offset));
  put<std::uint16_t>(out, 0);  // comment
  return out;
}

std::uint32_t zip_crc32(std::span<const std::byte> bytes, std::uint32_t crc) {
  return static_cast<std::uint32_t>(::crc32_z(crc, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()));
}

}  // namespace dfm::formats
