#include "prepare/run_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/data/shard_writer.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;
constexpr const char* kSettingsName = "settings.json";

nlohmann::json part_to_json(const data::SampleEntry::Part& part) { return {part.offset, part.size, part.checksum}; }

void part_from_json(const nlohmann::json& json, data::SampleEntry::Part& part) {
  json.at(0).get_to(part.offset);
  json.at(1).get_to(part.size);
  json.at(2).get_to(part.checksum);
}

std::string record_to_json(const ShardRecord& record) {
  nlohmann::json json = {{"next_item", record.next_item},
                         {"num_without_caption", record.num_without_caption},
                         {"skipped", nlohmann::json::array()},
                         {"samples", nlohmann::json::array()}};
  for (const Skipped& skipped : record.skipped) json["skipped"].push_back({skipped.name, skipped.reason});
  for (const data::SampleEntry& entry : record.samples) {
    json["samples"].push_back({entry.key, part_to_json(entry.json), part_to_json(entry.pickle), part_to_json(entry.pth),
                               entry.channels, entry.frames, entry.height, entry.width, entry.text_length,
                               entry.text_width, entry.fps});
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

ShardRecord record_from_json(const fs::path& path, const std::string& shard, std::uint32_t number) {
  ShardRecord record;
  record.shard = shard;
  try {
    const nlohmann::json json = nlohmann::json::parse(read_text_file(path));
    json.at("next_item").get_to(record.next_item);
    json.at("num_without_caption").get_to(record.num_without_caption);
    for (const auto& skipped : json.at("skipped")) record.skipped.push_back({skipped.at(0), skipped.at(1)});
    for (const auto& row : json.at("samples")) {
      data::SampleEntry& entry = record.samples.emplace_back();
      entry.shard = number;
      row.at(0).get_to(entry.key);
      part_from_json(row.at(1), entry.json);
      part_from_json(row.at(2), entry.pickle);
      part_from_json(row.at(3), entry.pth);
      row.at(4).get_to(entry.channels), row.at(5).get_to(entry.frames);
      row.at(6).get_to(entry.height), row.at(7).get_to(entry.width);
      row.at(8).get_to(entry.text_length), row.at(9).get_to(entry.text_width);
      row.at(10).get_to(entry.fps);
    }
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: got damaged state of a stopped run ({}), want it whole; hint: remove {} and start again",
                    path.string(), error.what(), path.parent_path().parent_path().string());
  }
  return record;
}

Settings load_settings(const fs::path& path) {
  const nlohmann::json json = nlohmann::json::parse(read_text_file(path), nullptr, false);
  try {
    return json.get<Settings>();
  } catch (const nlohmann::json::exception&) {
    throw DataError("{}: got damaged state of a stopped run, want settings; hint: remove {} and start again",
                    path.string(), path.parent_path().parent_path().string());
  }
}

// Nothing, or only the beginnings of a run that was stopped before it noted its settings.
void check_unused(const fs::path& output_dir) {
  for (const fs::directory_entry& entry : fs::directory_iterator(output_dir)) {
    if (entry.path().filename() == data::kUnfinishedName) continue;
    throw DataError("--output-dir {}: got a folder that holds {}, want an empty or new one; hint: name another folder",
                    output_dir.string(), entry.path().filename().string());
  }
}

void remove_temporaries(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".tmp") fs::remove(entry.path(), ignored);
  }
}

}  // namespace

std::string describe_differences(const Settings& before, const Settings& now) {
  std::string text;
  const auto value_of = [](const Settings& settings, const std::string& name) {
    const auto found = settings.find(name);
    return found == settings.end() ? std::string("nothing") : found->second;
  };
  Settings all = before;
  all.insert(now.begin(), now.end());
  for (const auto& [name, ignored] : all) {
    const std::string was = value_of(before, name), is = value_of(now, name);
    if (was != is) text += fmt::format("{}{} {}, now {}", text.empty() ? "" : "; ", name, was, is);
  }
  return text;
}

FolderLock::~FolderLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool FolderLock::take(const fs::path& path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw DataError("{}: cannot create: {}", path.string(), std::strerror(errno));
  // A file system without locks is no reason to stop.
  return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

RunState::RunState(fs::path output_dir, const Settings& settings)
    : output_dir_(std::move(output_dir)), state_dir_(output_dir_ / data::kUnfinishedName) {
  std::error_code error;
  if (fs::exists(output_dir_, error) && !fs::is_directory(output_dir_, error)) {
    throw DataError("--output-dir {}: got a file, want a folder", output_dir_.string());
  }
  const bool is_continued = fs::exists(state_dir_ / kSettingsName, error);
  if (fs::exists(output_dir_, error) && !is_continued) check_unused(output_dir_);
  fs::create_directories(state_dir_, error);
  if (error) throw DataError("--output-dir {}: cannot create it: {}", output_dir_.string(), error.message());
  if (!lock_.take(state_dir_ / "lock")) {
    throw DataError("--output-dir {}: got a folder that another `dfm prepare` is writing to, want it alone",
                    output_dir_.string());
  }
  if (is_continued) {
    const std::string differences = describe_differences(load_settings(state_dir_ / kSettingsName), settings);
    if (!differences.empty()) {
      throw ConfigError(
          "--output-dir {}: got settings that differ from those of the stopped run there ({}), want the same to "
          "continue it; hint: repeat them, or name another --output-dir",
          output_dir_.string(), differences);
    }
    load_records();
  } else {
    write_file_atomically(state_dir_ / kSettingsName, nlohmann::json(settings).dump(2) + "\n");
  }
  remove_temporaries(output_dir_);
  remove_temporaries(output_dir_ / ".nv-meta");
}

void RunState::load_records() {
  for (std::uint32_t number = 0;; ++number) {
    const std::string shard = data::ShardWriter::shard_name(0, number);
    if (!fs::exists(output_dir_ / shard)) return;
    records_.push_back(record_from_json(state_dir_ / (shard + ".json"), shard, number));
  }
}

void RunState::add(ShardRecord record) {
  for (data::SampleEntry& entry : record.samples) entry.shard = static_cast<std::uint32_t>(records_.size());
  write_file_atomically(state_dir_ / (record.shard + ".json"), record_to_json(record));
  records_.push_back(std::move(record));
}

void RunState::remove() {
  std::error_code ignored;
  fs::remove_all(state_dir_, ignored);  // what is left does no harm: the card says that the data set is complete
}

}  // namespace dfm::prepare
