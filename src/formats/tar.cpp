#include "dfm/formats/tar.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "dfm/base/error.h"
#include "dfm/formats/torch_zip.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::uint64_t kBlock = 512;
constexpr std::uint64_t kRecord = 20 * kBlock;  // what tar pads an archive to
constexpr std::uint64_t kMaxExtension = 1 << 20;
constexpr std::size_t kNameField = 100, kPrefixField = 155;

using Block = std::array<char, kBlock>;

std::uint64_t padded(std::uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

std::string field_text(const Block& block, std::size_t offset, std::size_t size) {
  const char* first = block.data() + offset;
  return {first, std::find(first, first + size, '\0')};
}

// Octal digits in blanks or NULs, or base 256 when the first bit is set. Nothing when it is neither.
std::optional<std::uint64_t> field_number(const Block& block, std::size_t offset, std::size_t size) {
  std::uint64_t value = 0;
  const auto first = static_cast<unsigned char>(block[offset]);
  if (first >= 0x80) {
    if (first != 0x80) return std::nullopt;  // negative or too large
    for (std::size_t i = 1; i < size; ++i) {
      if (value >> 56U != 0) return std::nullopt;
      value = value << 8U | static_cast<unsigned char>(block[offset + i]);
    }
    return value;
  }
  bool ended = false;
  for (std::size_t i = 0; i < size; ++i) {
    const char c = block[offset + i];
    if (c == '\0' || c == ' ') {
      ended |= i > 0 && block[offset + i - 1] >= '0';
    } else if (ended || c < '0' || c > '7' || value >> 60U != 0) {
      return std::nullopt;
    } else {
      value = value * 8 + static_cast<std::uint64_t>(c - '0');
    }
  }
  return value;
}

bool checksum_holds(const Block& block) {
  std::int64_t as_unsigned = 0, as_signed = 0;
  for (std::size_t i = 0; i < kBlock; ++i) {
    const char c = i >= 148 && i < 156 ? ' ' : block[i];
    as_unsigned += static_cast<unsigned char>(c);
    as_signed += static_cast<signed char>(c);
  }
  const auto stored = field_number(block, 148, 8);
  return stored &&
         (static_cast<std::int64_t>(*stored) == as_unsigned || static_cast<std::int64_t>(*stored) == as_signed);
}

class TarReader {
 public:
  TarReader(ReadAt read_at, std::uint64_t size, std::string name)
      : read_at_(std::move(read_at)), size_(size), name_(std::move(name)) {}

  TarListing list() {
    TarListing listing;
    Block block{};
    while (true) {
      const std::uint64_t offset = offset_;
      read(offset, block);
      if (is_zero(block)) {
        read(offset + kBlock, block);
        if (!is_zero(block)) fail(offset, "got one zero block, want two at the end; hint: the archive is damaged");
        if (has_extension_) fail(offset, "got an extension header without a member");
        listing.end_offset = offset;
        return listing;
      }
      if (!checksum_holds(block)) fail(offset, "got a header with a wrong checksum; hint: the archive is damaged");
      read_entry(offset, block, listing);
    }
  }

 private:
  void read_entry(std::uint64_t offset, const Block& block, TarListing& listing) {
    const auto stored_size = field_number(block, 124, 12);
    if (!stored_size) fail(offset, "got a header without a valid size");
    const char type = block[156];
    std::uint64_t size = *stored_size;
    const bool is_extension = type == 'x' || type == 'g' || type == 'L' || type == 'K';
    const bool has_data = type < '1' || type > '6';
    if (!is_extension && pax_size_) size = *pax_size_;
    if (!has_data) size = 0;
    const std::uint64_t data_offset = offset + kBlock;
    if (data_offset > size_ || size > size_ - data_offset) {
      fail(offset, "got a member of {} bytes, want at most the {} that follow; hint: the archive is cut short", size,
           size_ - std::min(size_, data_offset));
    }
    offset_ = data_offset + padded(size);
    if (is_extension) return read_extension(type, offset, size);
    if (type == 'S') fail(offset, "got a sparse member, want a plain one");
    const std::string name = pax_name_ ? *pax_name_ : header_name(block);
    if ((type == '\0' || type == '0' || type == '7') && !name.ends_with('/')) {
      listing.members.push_back({name, has_extension_ ? extension_offset_ : offset, data_offset, size});
    }
    has_extension_ = false;
    pax_name_.reset();
    pax_size_.reset();
  }

  void read_extension(char type, std::uint64_t offset, std::uint64_t size) {
    if (size > kMaxExtension) fail(offset, "got an extension header of {} bytes, want at most {}", size, kMaxExtension);
    std::string content(static_cast<std::size_t>(size), '\0');
    read_at_(offset + kBlock, {reinterpret_cast<std::byte*>(content.data()), content.size()});
    if (type == 'g') return;  // comments and defaults: nothing that matters here
    if (!has_extension_) extension_offset_ = offset;
    has_extension_ = true;
    if (type == 'L') pax_name_ = content.substr(0, content.find('\0'));
    if (type == 'x') read_pax(offset, content);
  }

  // Records `<length> <key>=<value>\n`.
  void read_pax(std::uint64_t offset, std::string_view content) {
    while (!content.empty() && content[0] != '\0') {
      std::size_t length = 0, digits = 0;
      while (digits < content.size() && digits < 8 && content[digits] >= '0' && content[digits] <= '9') {
        length = length * 10 + static_cast<std::size_t>(content[digits++] - '0');
      }
      if (digits == 0 || length <= digits + 1 || length > content.size() || content[digits] != ' ' ||
          content[length - 1] != '\n') {
        fail(offset, "got a damaged pax header");
      }
      const std::string_view record = content.substr(digits + 1, length - digits - 2);
      content.remove_prefix(length);
      const std::size_t equals = record.find('=');
      if (equals == std::string_view::npos) fail(offset, "got a damaged pax header");
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key == "path") pax_name_ = value;
      if (key == "size") pax_size_ = decimal(offset, value);
      if (key.starts_with("GNU.sparse.")) fail(offset, "got a sparse member, want a plain one");
    }
  }

  std::uint64_t decimal(std::uint64_t offset, std::string_view text) {
    std::uint64_t value = 0;
    for (const char c : text) {
      if (c < '0' || c > '9' || value > (std::uint64_t{1} << 58U)) fail(offset, "got a damaged pax size");
      value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
  }

  static std::string header_name(const Block& block) {
    std::string name = field_text(block, 0, kNameField);
    if (std::memcmp(block.data() + 257, "ustar\0", 6) != 0) return name;
    const std::string prefix = field_text(block, 345, kPrefixField);
    return prefix.empty() ? name : prefix + "/" + name;
  }

  static bool is_zero(const Block& block) {
    return std::all_of(block.begin(), block.end(), [](char c) { return c == '\0'; });
  }

  void read(std::uint64_t offset, Block& block) {
    if (offset > size_ || size_ - offset < kBlock) {
      fail(offset, "got {} bytes, want an end-of-archive block; hint: the archive is cut short", size_);
    }
    read_at_(offset, {reinterpret_cast<std::byte*>(block.data()), block.size()});
  }

  template <typename... Args>
  [[noreturn]] void fail(std::uint64_t offset, fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError("{}: {} (tar, byte {})", name_, fmt::format(format, std::forward<Args>(args)...), offset);
  }

  ReadAt read_at_;
  std::uint64_t size_, offset_ = 0;
  std::string name_;
  bool has_extension_ = false;
  std::uint64_t extension_offset_ = 0;
  std::optional<std::string> pax_name_;
  std::optional<std::uint64_t> pax_size_;
};

void put_octal(Block& block, std::size_t offset, std::size_t size, std::uint64_t value) {
  const std::string digits = fmt::format("{:0{}o}", value, size - 1);
  std::memcpy(block.data() + offset, digits.data(), digits.size());
}

Block member_header(const std::string& name, std::uint64_t size) {
  Block block{};
  std::string prefix, base = name;
  if (name.size() > kNameField) {
    const std::size_t slash = name.find('/', name.size() - kNameField - 1);
    if (slash != std::string::npos && slash > 0 && slash <= kPrefixField && slash + 1 < name.size()) {
      prefix = name.substr(0, slash);
      base = name.substr(slash + 1);
    }
  }
  if (base.empty() || base.size() > kNameField || name.find('\0') != std::string::npos) {
    throw DataError("tar member {}: got a name of {} bytes, want at most {}", printable(name), name.size(), kNameField);
  }
  constexpr std::uint64_t kMaxSize = (std::uint64_t{1} << 33U) - 1;  // 11 octal digits
  if (size > kMaxSize) throw DataError("tar member {}: got {} bytes, want at most {}", name, size, kMaxSize);
  std::memcpy(block.data(), base.data(), base.size());
  put_octal(block, 100, 8, 0444);
  put_octal(block, 108, 8, 0);  // uid
  put_octal(block, 116, 8, 0);  // gid
  put_octal(block, 124, 12, size);
  put_octal(block, 136, 12, 0);  // mtime: the same samples make the same archive
  block[156] = '0';
  std::memcpy(block.data() + 257,
              "ustar\0"
              "00",
              8);
  std::memcpy(block.data() + 265, "bigdata", 7);
  std::memcpy(block.data() + 297, "bigdata", 7);
  std::memcpy(block.data() + 345, prefix.data(), prefix.size());
  std::memset(block.data() + 148, ' ', 8);
  std::uint64_t sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  put_octal(block, 148, 7, sum);
  block[154] = '\0';
  return block;
}

std::span<const std::byte> bytes_of(const Block& block) { return std::as_bytes(std::span(block)); }

}  // namespace

TarListing read_tar_listing(std::span<const std::byte> archive, const std::string& name) {
  return TarReader(read_from(archive, name), archive.size(), name).list();
}

TarListing read_tar_listing(const std::filesystem::path& path) {
  const File file(path, File::Mode::kRead);
  const ReadAt read_at = [&file](std::uint64_t offset, std::span<std::byte> bytes) { file.read_at(offset, bytes); };
  return TarReader(read_at, file.size(), path.string()).list();
}

std::vector<TarMember> list_tar(const std::filesystem::path& path) { return read_tar_listing(path).members; }

std::optional<SampleName> split_sample_name(std::string_view member_name) {
  const std::size_t slash = member_name.rfind('/');
  const std::size_t base = slash == std::string_view::npos ? 0 : slash + 1;
  // Members `__name__` and all in a folder of such a name are no samples.
  for (std::size_t first = 0; first < member_name.size();) {
    const std::size_t end = std::min(member_name.find('/', first), member_name.size());
    const std::string_view part = member_name.substr(first, end - first);
    if (part.size() >= 4 && part.starts_with("__") && part.ends_with("__")) return std::nullopt;
    first = end + 1;
  }
  const std::size_t dot = member_name.find('.', base);
  if (dot == std::string_view::npos || dot == base) return std::nullopt;
  return SampleName{std::string(member_name.substr(0, dot)), std::string(member_name.substr(dot + 1))};
}

TarWriter::TarWriter(const std::filesystem::path& path) : file_(path, File::Mode::kCreate) {}

TarMember TarWriter::add(const std::string& name, std::span<const std::byte> bytes) {
  const Block header = member_header(name, bytes.size());
  TarMember member{name, offset_, offset_ + kBlock, bytes.size()};
  file_.write(bytes_of(header));
  file_.write(bytes);
  const Block zeros{};
  file_.write(bytes_of(zeros).first(static_cast<std::size_t>(padded(bytes.size()) - bytes.size())));
  offset_ = member.data_offset + padded(bytes.size());
  return member;
}

void TarWriter::close() {
  const std::uint64_t end = (offset_ + 2 * kBlock + kRecord - 1) / kRecord * kRecord;
  const std::string zeros(static_cast<std::size_t>(end - offset_), '\0');
  file_.write(as_bytes(zeros));
  file_.sync();
  file_.close();
}

void write_tar_index(const std::filesystem::path& path, std::span<const std::uint64_t> offsets) {
  write_file_atomically(path, as_text(std::as_bytes(offsets)));
}

std::vector<std::uint64_t> read_tar_index(const std::filesystem::path& path) {
  const std::string content = read_text_file(path);
  if (content.size() % sizeof(std::uint64_t) != 0 || content.empty()) {
    throw DataError("{}: got {} bytes, want one or more numbers of 8 bytes; hint: the index is cut short",
                    path.string(), content.size());
  }
  std::vector<std::uint64_t> offsets(content.size() / sizeof(std::uint64_t));
  std::memcpy(offsets.data(), content.data(), content.size());
  return offsets;
}

}  // namespace dfm::formats
