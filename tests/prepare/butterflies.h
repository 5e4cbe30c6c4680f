#pragma once
// Small runs of prepare, and what they leave.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dfm/base/file.h"
#include "dfm/prepare/prepare.h"

namespace dfm::test {

inline prepare::PrepareOptions butterflies(const std::filesystem::path& output_dir, int count) {
  prepare::PrepareOptions options;
  options.input = "synthetic:butterflies:" + std::to_string(count);
  options.output_dir = output_dir;
  options.short_side = 32;
  options.num_video_frames = 9;
  options.shard_max_count = 3;
  return options;
}

inline prepare::RunContext quiet() { return {.show_progress = false}; }

// Every file of a folder with its contents.
inline std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    files[name] = entry.is_regular_file() ? read_text_file(entry.path()) : "a folder";
  }
  return files;
}

inline void expect_same_files(const std::filesystem::path& got_folder, const std::filesystem::path& want_folder) {
  const auto got = contents(got_folder), want = contents(want_folder);
  std::vector<std::string> got_names, want_names;
  for (const auto& [name, bytes] : got) got_names.push_back(name);
  for (const auto& [name, bytes] : want) want_names.push_back(name);
  ASSERT_EQ(got_names, want_names);
  for (const auto& [name, bytes] : want) EXPECT_TRUE(got.at(name) == bytes) << name << " differs";
}

}  // namespace dfm::test
