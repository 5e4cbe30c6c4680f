#include "formats/media_structure.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <optional>
#include <string_view>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::formats {
namespace {

[[noreturn]] void throw_cut(const std::filesystem::path& path, std::uint64_t size, std::uint64_t want,
                            const char* what) {
  throw DataError("{}: got {} bytes, want at least {} ({}); hint: the file is cut short", path.string(), size, want,
                  what);
}

std::uint64_t big_endian(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (const std::byte byte : bytes) value = value << 8 | std::to_integer<std::uint64_t>(byte);
  return value;
}

// Reads within a file, or the bytes of one, short at its end.
class Window {
 public:
  explicit Window(const std::filesystem::path& path)
      : file_(std::in_place, path, File::Mode::kRead), size_(file_->size()) {}
  explicit Window(std::span<const std::byte> bytes) : whole_(bytes), size_(bytes.size()) {}
  [[nodiscard]] std::uint64_t size() const { return size_; }
  std::span<const std::byte> at(std::uint64_t offset, std::size_t count) {
    if (offset >= size_) return {};
    count = std::min<std::uint64_t>({count, bytes_.size(), size_ - offset});
    if (!file_) return whole_.subspan(offset, count);
    const std::span<std::byte> part(bytes_.data(), count);
    file_->read_at(offset, part);
    return part;
  }

 private:
  std::optional<File> file_;
  std::span<const std::byte> whole_;
  std::uint64_t size_;
  std::array<std::byte, 32> bytes_{};
};

bool is_box_name(std::span<const std::byte> name) {
  return std::all_of(name.begin(), name.end(), [](std::byte byte) { return std::isprint(std::to_integer<int>(byte)); });
}

// ISO 14496-12: size u32, type; size 1: a u64 size follows; size 0: to the end of the file.
void check_boxes(Window& file, const std::filesystem::path& path) {
  for (std::uint64_t offset = 0; offset < file.size();) {
    const auto head = file.at(offset, 16);
    if (head.size() < 8 || !is_box_name(head.subspan(4, 4))) return;  // something appended, not a box
    std::uint64_t size = big_endian(head.first(4));
    if (size == 0) return;
    if (size == 1) {
      if (head.size() < 16) throw_cut(path, file.size(), offset + 16, "a box");
      size = big_endian(head.subspan(8, 8));
    }
    if (size < 8) return;
    if (size > file.size() - offset) throw_cut(path, file.size(), offset + size, "the last box");
    offset += size;
  }
}

// EBML numbers: the count of leading zero bits says how many bytes; all value bits set means unknown.
struct EbmlNumber {
  std::uint64_t value = 0;
  std::size_t length = 0;  // 0: not a number
  bool is_unknown = false;
};
EbmlNumber ebml_number(std::span<const std::byte> bytes, bool keep_marker) {
  if (bytes.empty()) return {};
  const auto first = std::to_integer<unsigned>(bytes[0]);
  std::size_t length = 1;
  while (length <= 8 && (first & (0x80U >> (length - 1))) == 0) ++length;
  if (length > 8 || length > bytes.size()) return {};
  const std::uint64_t whole = big_endian(bytes.first(length));
  const std::uint64_t mask = (std::uint64_t{1} << (7 * length)) - 1;
  return {keep_marker ? whole : whole & mask, length, (whole & mask) == mask};
}

void check_matroska(Window& file, const std::filesystem::path& path) {
  for (std::uint64_t offset = 0; offset < file.size();) {
    const auto head = file.at(offset, 12);
    const EbmlNumber id = ebml_number(head, true);
    if (id.length == 0 || id.length > 4) return;
    const EbmlNumber size = ebml_number(head.subspan(id.length), false);
    if (size.length == 0 || size.is_unknown) return;  // a stream of unknown length cannot be checked
    const std::uint64_t start = offset + id.length + size.length;
    if (size.value > file.size() - start) throw_cut(path, file.size(), start + size.value, "its last element");
    offset = start + size.value;
  }
}

void check_riff(Window& file, const std::filesystem::path& path) {
  for (std::uint64_t offset = 0; offset + 8 <= file.size();) {
    const auto head = file.at(offset, 8);
    if (as_text(head.first(4)) != "RIFF") return;
    std::uint64_t size = 0;
    for (std::size_t i = 0; i < 4; ++i) size |= std::to_integer<std::uint64_t>(head[4 + i]) << (8 * i);
    if (size > file.size() - offset - 8) throw_cut(path, file.size(), offset + 8 + size, "its RIFF chunk");
    offset += 8 + size + size % 2;
  }
}

void check_clip(Window& file, const std::filesystem::path& path) {
  const auto head = file.at(0, 12);
  if (head.size() < 12) throw DataError("{}: got {} bytes, want a clip", path.string(), file.size());
  if (big_endian(head.first(4)) == 0x1A45DFA3) return check_matroska(file, path);
  if (as_text(head.first(4)) == "RIFF") return check_riff(file, path);
  const std::string_view box = as_text(head.subspan(4, 4));
  for (const std::string_view name : {"ftyp", "moov", "mdat", "free", "skip", "wide", "styp"}) {
    if (box == name) return check_boxes(file, path);
  }
}

ImageSize size_in_header(Window& file, const std::filesystem::path& path) {
  const auto need = [&](std::uint64_t offset, std::size_t count) {
    const auto bytes = file.at(offset, count);
    if (bytes.size() < count) throw_cut(path, file.size(), offset + count, "the header of a picture");
    return bytes;
  };
  const auto head = need(0, 4);
  if (as_text(head) == "\x89PNG") {
    const auto sides = need(16, 8);  // signature 8, length and name of IHDR 8
    return {static_cast<std::int64_t>(big_endian(sides.subspan(4, 4))),
            static_cast<std::int64_t>(big_endian(sides.first(4)))};
  }
  if (big_endian(head.first(2)) != 0xFFD8) return {};
  constexpr int kMostSegments = 4096;  // profiles and previews take up to 255 each
  std::uint64_t offset = 2;
  for (int i = 0; i < kMostSegments; ++i) {
    const auto segment = need(offset, 9);
    const auto marker = std::to_integer<unsigned>(segment[1]);
    if (std::to_integer<unsigned>(segment[0]) != 0xFF) return {};
    if (marker == 0xFF) {  // a fill byte
      ++offset;
      continue;
    }
    // SOF0 to SOF15 without DHT, JPG and DAC: precision u8, height u16, width u16.
    if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
      return {static_cast<std::int64_t>(big_endian(segment.subspan(5, 2))),
              static_cast<std::int64_t>(big_endian(segment.subspan(7, 2)))};
    }
    if (marker == 0xD9 || marker == 0xDA) return {};  // the picture has begun, or ended, without a size
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {
      offset += 2;
      continue;
    }
    const std::uint64_t length = big_endian(segment.subspan(2, 2));
    if (length < 2) return {};
    offset += 2 + length;
  }
  return {};
}

}  // namespace

std::size_t whole_png_size(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  std::size_t offset = 8;  // the signature, known to the caller
  while (true) {
    if (bytes.size() - offset < 12) throw_cut(path, bytes.size(), offset + 12, "a PNG ends with IEND");
    const std::uint64_t length = big_endian(bytes.subspan(offset, 4));
    if (length > bytes.size() - offset - 12) throw_cut(path, bytes.size(), offset + 12 + length, "a PNG chunk");
    const auto checked = bytes.subspan(offset + 4, 4 + length);
    const auto* data = reinterpret_cast<const Bytef*>(checked.data());
    const std::uint64_t crc = ::crc32_z(0, data, checked.size());
    const std::uint64_t want = big_endian(bytes.subspan(offset + 8 + length, 4));
    if (crc != want) {
      throw DataError("{}: got checksum {:08x}, want {:08x} (PNG chunk at byte {}); hint: the file is damaged",
                      path.string(), crc, want, offset);
    }
    offset += 12 + length;
    if (as_text(checked.first(4)) == "IEND") return offset;
  }
}

std::size_t whole_jpeg_size(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  const auto byte_at = [&](std::size_t i) {
    if (i >= bytes.size()) throw_cut(path, bytes.size(), i + 1, "a JPEG ends with an EOI marker");
    return std::to_integer<unsigned>(bytes[i]);
  };
  std::size_t offset = 2;  // SOI, known to the caller
  while (true) {
    // Entropy-coded data, or fill bytes, up to the next marker. FF00 is a stuffed byte, FFD0-FFD7 restart markers.
    unsigned marker = 0;
    while (marker == 0) {
      if (byte_at(offset) == 0xFF) {
        const unsigned code = byte_at(offset + 1);
        if (code != 0 && code != 0xFF && (code < 0xD0 || code > 0xD7)) marker = code;
      }
      offset += marker != 0 ? 2 : 1;
    }
    if (marker == 0xD9) return offset;
    if (marker == 0x01 || marker == 0xD8) continue;  // no length follows
    const std::size_t length = byte_at(offset) << 8 | byte_at(offset + 1);
    if (length < 2) throw DataError("{}: got a JPEG segment of {} bytes, want at least 2", path.string(), length);
    offset += length;
  }
}

ImageSize header_size(const std::filesystem::path& path) {
  Window file(path);
  return size_in_header(file, path);
}

ImageSize header_size(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  Window file(bytes);
  return size_in_header(file, name);
}

void check_clip_is_whole(const std::filesystem::path& path) {
  Window file(path);
  check_clip(file, path);
}

void check_clip_is_whole(std::span<const std::byte> bytes, const std::filesystem::path& name) {
  Window file(bytes);
  check_clip(file, name);
}

}  // namespace dfm::formats
