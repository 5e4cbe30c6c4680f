#pragma once
// TensorBoard's event files: TFRecords (length, masked CRC-32C, payload, masked CRC-32C) of Event messages.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "dfm/base/file.h"

namespace dfm::formats {

// Writes <folder>/events.out.tfevents.<unix seconds>.<host>.<process>.<number>, a new file for each writer: TensorBoard
// merges the files of a folder. A killed run loses at most what was not flushed.
class EventWriter {
 public:
  explicit EventWriter(const std::filesystem::path& folder);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  // `wall_time` in unix seconds; a negative one means now.
  void scalar(std::string_view tag, std::int64_t step, double value, double wall_time = -1);
  void flush();
  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }

 private:
  void add_record(std::string_view event);
  File file_;
  std::string buffer_;
};

}  // namespace dfm::formats
