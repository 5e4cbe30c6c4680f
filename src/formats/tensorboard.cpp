#include "dfm/formats/tensorboard.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>

#include "dfm/base/hash.h"

namespace dfm::formats {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;

// Protocol buffer fields by hand: key = number << 3 | wire type (0 varint, 1 fixed64, 2 bytes, 5 fixed32).
void add_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
template <typename T>
void add_little_endian(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}
void add_bytes(std::string& out, int number, std::string_view bytes) {
  add_varint(out, static_cast<std::uint64_t>(number << 3 | 2));
  add_varint(out, bytes.size());
  out.append(bytes);
}
void add_double(std::string& out, int number, double value) {
  add_varint(out, static_cast<std::uint64_t>(number << 3 | 1));
  add_little_endian(out, std::bit_cast<std::uint64_t>(value));
}
void add_float(std::string& out, int number, float value) {
  add_varint(out, static_cast<std::uint64_t>(number << 3 | 5));
  add_little_endian(out, std::bit_cast<std::uint32_t>(value));
}
void add_int64(std::string& out, int number, std::int64_t value) {
  add_varint(out, static_cast<std::uint64_t>(number << 3));
  add_varint(out, static_cast<std::uint64_t>(value));
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// TFRecord's mask: a CRC of data that holds CRCs would be weak.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(as_bytes(bytes));
  return (crc >> 15 | crc << 17) + 0xa282ead8U;
}

std::filesystem::path new_file_name(const std::filesystem::path& folder) {
  static std::atomic<int> number{0};
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') std::strcpy(host.data(), "localhost");
  return folder / fmt::format("events.out.tfevents.{:010d}.{}.{}.{}", static_cast<std::int64_t>(now_seconds()),
                              host.data(), ::getpid(), number++);
}

File create_in(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);  // a failure shows when the file is created
  return {new_file_name(folder), File::Mode::kCreate};
}

}  // namespace

EventWriter::EventWriter(const std::filesystem::path& folder) : file_(create_in(folder)) {
  std::string event;  // Event { wall_time = 1; step = 2; file_version = 3; summary = 5 }
  add_double(event, 1, now_seconds());
  add_bytes(event, 3, "brain.Event:2");
  add_record(event);
  flush();
}

EventWriter::~EventWriter() {
  try {
    flush();
  } catch (...) {  // a full disk: whoever wants to know calls flush()
  }
}

void EventWriter::scalar(std::string_view tag, std::int64_t step, double value, double wall_time) {
  std::string entry;  // Summary.Value { tag = 1; simple_value = 2 }
  add_bytes(entry, 1, tag);
  add_float(entry, 2, static_cast<float>(value));
  std::string summary;  // Summary { value = 1 }
  add_bytes(summary, 1, entry);
  std::string event;
  add_double(event, 1, wall_time < 0 ? now_seconds() : wall_time);
  add_int64(event, 2, step);
  add_bytes(event, 5, summary);
  add_record(event);
  if (buffer_.size() >= kBufferBytes) flush();
}

void EventWriter::add_record(std::string_view event) {
  std::string length;
  add_little_endian(length, std::uint64_t{event.size()});
  buffer_ += length;
  add_little_endian(buffer_, masked_crc(length));
  buffer_ += event;
  add_little_endian(buffer_, masked_crc(event));
}

void EventWriter::flush() {
  if (buffer_.empty()) return;
  file_.write(as_bytes(buffer_));
  buffer_.clear();
}

}  // namespace dfm::formats
