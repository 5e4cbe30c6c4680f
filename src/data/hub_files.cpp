#include "data/hub_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <map>
#include <set>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

// Whether one of the words stands in the path, not as a part of another word: "data/train-0000.parquet", not
// "trains/x".
template <std::size_t kCount>
bool has_word(const std::string& path, const std::array<std::string_view, kCount>& words) {
  const auto is_letter = [&](std::size_t i) { return std::isalpha(static_cast<unsigned char>(path[i])) != 0; };
  for (const std::string_view word : words) {
    for (std::size_t i = path.find(word); i != std::string::npos; i = path.find(word, i + 1)) {
      const std::size_t end = i + word.size();
      if ((i == 0 || !is_letter(i - 1)) && (end == path.size() || !is_letter(end))) return true;
    }
  }
  return false;
}

constexpr std::array<std::string_view, 2> kTrain{"train", "training"};
constexpr std::array<std::string_view, 8> kOthers{"test",       "testing", "val",  "valid",
                                                  "validation", "dev",     "eval", "evaluation"};

// Tables and tars are named by their split, or lie in a folder of it. A picture's own name tells what it shows:
// toy-train.png, dev-board.png.
enum class SplitIn { kPath, kFolder };

// How many were left out.
std::size_t keep_train_split(std::vector<std::string>& names, SplitIn where) {
  const auto has = [&](const std::string& name, const auto& words) {
    return has_word(where == SplitIn::kPath ? name : fs::path(name).parent_path().generic_string(), words);
  };
  const bool has_train = std::any_of(names.begin(), names.end(), [&](const auto& name) { return has(name, kTrain); });
  return std::erase_if(names,
                       [&](const std::string& name) { return has_train ? !has(name, kTrain) : has(name, kOthers); });
}

// Names `x-00001-of-00003.parquet` say how many there are: a cache that holds some of them must not pass for the whole.
void check_shards(const std::string& repo, const std::vector<std::string>& names) {
  std::map<std::string, std::set<std::uint64_t>> found;  // by the name with the count, without the number
  std::map<std::string, std::uint64_t> wanted;
  constexpr std::string_view kOf = "-of-";
  for (const std::string& name : names) {
    const std::size_t of = name.rfind(kOf);
    if (of == std::string::npos) continue;
    std::size_t begin = of;
    while (begin > 0 && std::isdigit(static_cast<unsigned char>(name[begin - 1])) != 0) --begin;
    std::uint64_t number = 0, count = 0;
    if (std::from_chars(name.data() + begin, name.data() + of, number).ec != std::errc()) continue;
    if (std::from_chars(name.data() + of + kOf.size(), name.data() + name.size(), count).ec != std::errc()) continue;
    const std::string series = name.substr(0, begin) + name.substr(of);
    found[series].insert(number);
    wanted[series] = count;
  }
  for (const auto& [series, count] : wanted) {
    if (found[series].size() >= count) continue;
    throw DataError("{}: got {} of {} files {}, want all; hint: run once with a network, without HF_HUB_OFFLINE", repo,
                    found[series].size(), count, series);
  }
}

// Whether all files of a commit came is kept beside the cache's own folders, in <repository>/.dfm/<commit>: `started`
// or `whole`. Clients in Python pass over what they do not know there. A commit without this file was downloaded by
// another client: it is taken for whole unless a download that was broken off lies among the blobs.
class DownloadState {
 public:
  // `snapshot`: <repository>/snapshots/<commit>
  explicit DownloadState(const fs::path& snapshot)
      : repository_(snapshot.parent_path().parent_path()), file_(repository_ / ".dfm" / snapshot.filename()) {}

  void start() const {
    std::error_code ignored;
    if (!fs::exists(file_, ignored)) write("started");  // what was whole stays so
  }
  void finish() const { write(kWhole); }

  [[nodiscard]] bool is_whole() const {
    std::error_code error;
    if (fs::exists(file_, error)) return read_text_file(file_) == kWhole;
    for (fs::directory_iterator it(repository_ / "blobs", error), end; !error && it != end; it.increment(error)) {
      if (it->path().extension() == ".incomplete") return false;
    }
    return true;
  }

 private:
  void write(std::string_view text) const {
    try {
      if (std::error_code ignored; fs::exists(file_, ignored) && read_text_file(file_) == text) return;
      fs::create_directories(file_.parent_path());
      write_file_atomically(file_, text);
    } catch (const std::exception& error) {  // a cache that cannot be written, with all files in it, will do
      log::debug("data", "{}", error.what());
    }
  }

  static constexpr std::string_view kWhole = "whole";
  fs::path repository_, file_;
};

// Captions come before their pictures: a download that stops leaves no picture without the one it has.
std::vector<std::string> in_order(const FolderListing& files, const std::vector<std::string>& names) {
  std::vector<std::string> wanted;
  for (const auto* list : {&files.parquet, &files.tars, &files.csv, &files.metadata}) {
    wanted.insert(wanted.end(), list->begin(), list->end());
  }
  const std::set<std::string> there(names.begin(), names.end());
  for (const std::string& media : files.media) {
    const std::string caption = fs::path(media).replace_extension(".txt").generic_string();
    if (there.contains(caption)) wanted.push_back(caption);
    wanted.push_back(media);
  }
  return wanted;
}

// Names that say how many files there are were counted by select_hub_files.
bool is_counted(const FolderListing& files) {
  const auto has_count = [](const std::string& name) { return name.find("-of-") != std::string::npos; };
  return !files.parquet.empty() && std::all_of(files.parquet.begin(), files.parquet.end(), has_count);
}

}  // namespace

FolderListing select_hub_files(const std::string& repo, const std::vector<std::string>& names) {
  FolderListing all = sort_names(names), chosen;
  const std::size_t other_parquet = keep_train_split(all.parquet, SplitIn::kPath);
  const std::size_t other_tars = keep_train_split(all.tars, SplitIn::kPath);
  const std::size_t other_csv = keep_train_split(all.csv, SplitIn::kPath);
  const std::size_t other_media = keep_train_split(all.media, SplitIn::kFolder);
  std::size_t num_left_out = 0;  // of the kind that is chosen
  std::erase_if(all.metadata, [](const std::string& name) { return has_word(name, kOthers); });
  if (!all.parquet.empty()) {
    chosen.parquet = all.parquet;
    num_left_out = other_parquet;
  } else if (!all.tars.empty()) {
    chosen.tars = all.tars;
    num_left_out = other_tars;
  } else if (!all.media.empty()) {
    chosen.media = all.media;
    chosen.metadata = all.metadata;
    num_left_out = other_media;
  } else if (!all.csv.empty()) {
    chosen.csv = all.csv;
    num_left_out = other_csv;
  } else {
    constexpr std::size_t kMostShown = 8;
    const std::size_t shown = std::min(names.size(), kMostShown);
    throw DataError(
        "{}: got no parquet files, tars, pictures or csv files of a split train, want some (files: {}{}); hint: "
        "download "
        "and unpack it yourself, then --input FOLDER",
        repo, fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown), ", "),
        names.size() > shown ? ", ..." : "");
  }
  if (num_left_out > 0) log::info("data", "{}: {} files of other splits than train are left out", repo, num_left_out);
  check_shards(repo, chosen.parquet);
  check_shards(repo, chosen.tars);
  check_shards(repo, chosen.csv);
  return chosen;
}

HubFiles fetch_hub_files(const formats::Hub& hub, const std::string& id) {
  formats::HubRepo repo{.kind = formats::HubRepo::Kind::kDataset, .id = id};
  const std::vector<std::string> names = hub.list(repo);
  const bool is_cached_list = hub.answers_from_cache();  // which holds what came so far
  HubFiles result;
  result.listing = select_hub_files(id, names);
  for (const std::string& name : in_order(result.listing, names)) {
    fs::path folder = hub.fetch(repo, name);
    if (!result.folder.empty()) continue;
    for (auto depth = std::count(name.begin(), name.end(), '/'); depth >= 0; --depth) folder = folder.parent_path();
    result.folder = folder;
    // All files of one commit, although somebody may push another one meanwhile.
    repo.revision = folder.filename().string();
    if (!is_cached_list) {
      DownloadState(folder).start();
    } else if (!is_counted(result.listing) && !DownloadState(folder).is_whole()) {
      throw DataError(
          "hub dataset {}: got a download that was not finished, want it whole (in {}); hint: run once with a network, "
          "without HF_HUB_OFFLINE",
          id, folder.string());
    }
  }
  if (!is_cached_list) DownloadState(result.folder).finish();
  return result;
}

}  // namespace dfm::data
