#include "prepare/run_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/data/shard_writer.h"

namespace dfm::prepare {
namespace {

namespace fs = std::filesystem;
constexpr const char* kSettingsName = "settings.json";
constexpr const char* kLockName = "lock";  // of the first rank; "lock-2" is that of rank 2

nlohmann::json part_to_json(const data::SampleEntry::Part& part) { return {part.offset, part.size, part.checksum}; }

void part_from_json(const nlohmann::json& json, data::SampleEntry::Part& part) {
  json.at(0).get_to(part.offset);
  json.at(1).get_to(part.size);
  json.at(2).get_to(part.checksum);
}

std::string record_to_json(const ShardRecord& record) {
  nlohmann::json json = {{"num_without_caption", record.num_without_caption},
                         {"skipped", nlohmann::json::array()},
                         {"samples", nlohmann::json::array()}};
  for (const auto& [item, skipped] : record.skipped) json["skipped"].push_back({item, skipped.name, skipped.reason});
  for (const data::SampleEntry& entry : record.samples) {
    json["samples"].push_back({entry.key, part_to_json(entry.json), part_to_json(entry.pickle), part_to_json(entry.pth),
                               entry.channels, entry.frames, entry.height, entry.width, entry.text_length,
                               entry.text_width, entry.fps});
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

ShardRecord record_from_json(const fs::path& path, const std::string& shard) {
  ShardRecord record;
  record.shard = shard;
  try {
    const nlohmann::json json = nlohmann::json::parse(read_text_file(path));
    json.at("num_without_caption").get_to(record.num_without_caption);
    for (const auto& row : json.at("skipped")) record.skipped.push_back({row.at(0), {row.at(1), row.at(2)}});
    for (const auto& row : json.at("samples")) {
      data::SampleEntry& entry = record.samples.emplace_back();
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

// What a stopped run was writing: files beside their names, the indexes of shards that did not come to be, and notes
// between its ranks.
void remove_unfinished(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return;
  std::vector<fs::path> unfinished;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const fs::path extension = entry.path().extension();
    fs::path shard = entry.path();
    const bool is_orphan = extension == ".idx" && !fs::exists(shard.replace_extension(), ignored);
    const bool is_of_a_run =
        folder.filename() == data::kUnfinishedName && entry.path().filename().string().starts_with(kRunPrefix);
    if (extension == ".tmp" || is_orphan || is_of_a_run) unfinished.push_back(entry.path());
  }
  for (const fs::path& path : unfinished) fs::remove(path, ignored);
}

// The rank and number of a shard; nothing for another name.
std::optional<std::pair<std::int64_t, std::int64_t>> parse_shard_name(const std::string& name) {
  std::int64_t rank = 0, number = 0;
  const char* const end = name.data() + name.size();
  if (!name.starts_with("rank")) return std::nullopt;
  const auto [dash, rank_error] = std::from_chars(name.data() + 4, end, rank);
  if (rank_error != std::errc() || dash == end || *dash != '-') return std::nullopt;
  const auto [rest, number_error] = std::from_chars(dash + 1, end, number);
  if (number_error != std::errc() || name != data::ShardWriter::shard_name(rank, number)) return std::nullopt;
  return std::pair(rank, number);
}

[[noreturn]] void throw_in_use(const fs::path& output_dir) {
  throw DataError("--output-dir {}: got a folder that another `dfm prepare` is writing to, want it alone",
                  output_dir.string());
}

}  // namespace

void FolderLock::give_up() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = -1;
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
  if (!lock_.take(state_dir_ / kLockName)) throw_in_use(output_dir_);
  check_no_rank_is_writing();
  if (is_continued) {
    const std::string differences = describe_differences(load_settings(state_dir_ / kSettingsName), settings);
    if (!differences.empty()) {
      throw ConfigError(
          "--output-dir {}: got settings that differ from those of the stopped run there ({}), want the same to "
          "continue it; hint: repeat them, or name another --output-dir",
          output_dir_.string(), differences);
    }
    load_all();
  } else {
    write_file_atomically(state_dir_ / kSettingsName, nlohmann::json(settings).dump(2) + "\n");
  }
  remove_unfinished(output_dir_);
  remove_unfinished(output_dir_ / ".nv-meta");
  remove_unfinished(state_dir_);
}

RunState::RunState(fs::path output_dir, std::int64_t rank)
    : output_dir_(std::move(output_dir)), state_dir_(output_dir_ / data::kUnfinishedName) {
  std::error_code ignored;
  if (!fs::is_directory(state_dir_, ignored)) {
    throw DataError(
        "--output-dir {}: got a folder that rank {} does not see, want one on a file system that all "
        "ranks share",
        output_dir_.string(), rank);
  }
  if (!lock_.take(state_dir_ / fmt::format("{}-{}", kLockName, rank))) throw_in_use(output_dir_);
}

// A rank may outlive the first one of its run by some seconds.
void RunState::check_no_rank_is_writing() const {
  for (const fs::directory_entry& entry : fs::directory_iterator(state_dir_)) {
    if (!entry.path().filename().string().starts_with(std::string(kLockName) + "-")) continue;
    FolderLock lock;
    if (!lock.take(entry.path())) throw_in_use(output_dir_);
  }
}

void RunState::load_all() {
  std::vector<std::pair<std::int64_t, std::int64_t>> shards;
  for (const fs::directory_entry& entry : fs::directory_iterator(output_dir_)) {
    if (const auto shard = parse_shard_name(entry.path().filename().string())) shards.push_back(*shard);
  }
  std::sort(shards.begin(), shards.end());
  for (const auto& [rank, number] : shards) load(data::ShardWriter::shard_name(rank, number));
}

void RunState::reload() {
  records_.clear();
  load_all();
}

void RunState::load(const std::string& shard) {
  records_.push_back(record_from_json(state_dir_ / (shard + ".json"), shard));
}

void RunState::add(ShardRecord record) {
  write_file_atomically(state_dir_ / (record.shard + ".json"), record_to_json(record));
  records_.push_back(std::move(record));
}

std::vector<char> RunState::done_items(std::size_t num_items) const {
  std::vector<char> is_done(num_items, 0);
  const auto set_done = [&](std::uint64_t item, const std::string& shard) {
    const bool is_known = item < num_items;
    if (is_known && is_done[item] == 0) {
      is_done[item] = 1;
      return;
    }
    throw DataError("{}.json: got an item {}, want each of {} once; hint: remove {} and start again",
                    (state_dir_ / shard).string(), is_known ? "twice" : "that is none of the input", num_items,
                    output_dir_.string());
  };
  for (const ShardRecord& record : records_) {
    for (const SkippedItem& skipped : record.skipped) set_done(skipped.item, record.shard);
    for (const data::SampleEntry& entry : record.samples) {
      std::uint64_t item = num_items;
      std::from_chars(entry.key.data(), entry.key.data() + entry.key.size(), item);
      set_done(entry.key == data::sample_key(item) ? item : num_items, record.shard);
    }
  }
  return is_done;
}

std::int64_t RunState::next_number(std::int64_t rank) const {
  std::int64_t next = 0;
  for (const ShardRecord& record : records_) {
    const auto shard = parse_shard_name(record.shard);
    if (shard && shard->first == rank) next = std::max(next, shard->second + 1);
  }
  return next;
}

void RunState::write(const std::string& name, std::string_view bytes) const {
  write_file_atomically(state_dir_ / name, bytes);
}

std::string RunState::read(const std::string& name) const { return read_text_file(state_dir_ / name); }

bool RunState::exists(const std::string& name) const {
  std::error_code ignored;
  return fs::exists(state_dir_ / name, ignored);
}

void RunState::remove() {
  std::error_code ignored;
  fs::remove_all(state_dir_, ignored);  // what is left does no harm: the card says that the data set is complete
}

}  // namespace dfm::prepare
