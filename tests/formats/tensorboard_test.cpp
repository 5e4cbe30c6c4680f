// EventWriter, read back by hand and by Python's tensorboard.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "dfm/base/hash.h"
#include "dfm/formats/tensorboard.h"
#include "formats/media_files.h"

namespace dfm::formats {
namespace {

using test::MediaFolder;

template <typename T>
T little_endian(std::string_view bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::uint32_t masked(std::string_view bytes) {
  const std::uint32_t crc = crc32c(as_bytes(bytes));
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

std::vector<std::string> records(const std::filesystem::path& path) {
  const std::string file = read_text_file(path);
  std::vector<std::string> result;
  for (std::size_t offset = 0; offset < file.size();) {
    const std::string_view head = std::string_view(file).substr(offset, 8);
    const auto length = little_endian<std::uint64_t>(head);
    EXPECT_EQ(little_endian<std::uint32_t>(std::string_view(file).substr(offset + 8, 4)), masked(head));
    result.push_back(file.substr(offset + 12, length));
    EXPECT_EQ(little_endian<std::uint32_t>(std::string_view(file).substr(offset + 12 + length, 4)),
              masked(result.back()));
    offset += 16 + length;
  }
  return result;
}

TEST(EventWriter, WritesFramedRecords) {
  const MediaFolder folder;
  std::filesystem::path path;
  {
    EventWriter writer(folder / "runs" / "1");
    path = writer.path();
    EXPECT_EQ(records(path).size(), 1U);  // the version is there at once
    writer.scalar("lm loss", 7, .5, 1000);
    EXPECT_EQ(records(path).size(), 1U);
    writer.flush();
    EXPECT_EQ(records(path).size(), 2U);
    writer.scalar("lm loss", 8, .25, 1001);
  }
  EXPECT_TRUE(path.filename().string().starts_with("events.out.tfevents."));
  const auto all = records(path);
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0].substr(9),
            "\x1A\x0D"
            "brain.Event:2");
  // wall_time 1000.0; step 7; summary { value { tag: "lm loss" simple_value: .5 } }
  EXPECT_EQ(all[1], std::string("\x09\0\0\0\0\0\x40\x8F\x40\x10\x07\x2A\x10\x0A\x0E\x0A\x07lm loss\x15\0\0\0\x3F", 29));
}

TEST(EventWriter, FilesOfOneProcessHaveDifferentNames) {
  const MediaFolder folder;
  const EventWriter one(folder.path()), two(folder.path());
  EXPECT_NE(one.path(), two.path());
}

TEST(EventWriter, TensorboardReadsIt) {
  const std::string python = std::string(DFM_SOURCE_DIR) + "/.deps/venv/bin/python3";
  if (std::system((python + " -c 'import tensorboard' 2> /dev/null").c_str()) != 0) {
    if (std::getenv("CI") != nullptr) FAIL() << "no Python package tensorboard in .deps/venv";
    GTEST_SKIP() << "no Python package tensorboard in .deps/venv; script/bootstrap --test installs it";
  }
  const MediaFolder folder;
  {
    EventWriter writer(folder / "run");
    for (int step = 0; step < 3000; ++step) {  // more than a buffer
      writer.scalar("lm loss", step, 1.0 / (1 + step), 1.7e9 + step);
      writer.scalar("learning-rate", std::int64_t{5'000'000'000} + step, 1e-4);
    }
  }
  test::write_bytes(folder / "read.py", R"(
import struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}).Reload()
assert sorted(events.Tags()["scalars"]) == ["learning-rate", "lm loss"], events.Tags()
loss = events.Scalars("lm loss")
assert len(loss) == 3000
f32 = lambda x: struct.unpack("f", struct.pack("f", x))[0]
for step, event in enumerate(loss):
    assert (event.step, event.value, event.wall_time) == (step, f32(1 / (1 + step)), 1.7e9 + step), event
assert events.Scalars("learning-rate")[-1].step == 5000002999
)");
  const std::string command = python + " " + (folder / "read.py").string() + " " + (folder / "run").string();
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace dfm::formats
