#include "data/hub_files.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <map>
#include <set>

#include "dfm/base/error.h"

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

void keep_train_split(std::vector<std::string>& names) {
  const bool has_train =
      std::any_of(names.begin(), names.end(), [](const auto& name) { return has_word(name, kTrain); });
  std::erase_if(names,
                [&](const std::string& name) { return has_train ? !has_word(name, kTrain) : has_word(name, kOthers); });
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

}  // namespace

FolderListing select_hub_files(const std::string& repo, const std::vector<std::string>& names) {
  FolderListing all = sort_names(names), chosen;
  for (auto* list : {&all.parquet, &all.tars, &all.media, &all.csv}) keep_train_split(*list);
  std::erase_if(all.metadata, [](const std::string& name) { return has_word(name, kOthers); });
  if (!all.parquet.empty()) {
    chosen.parquet = all.parquet;
  } else if (!all.tars.empty()) {
    chosen.tars = all.tars;
  } else if (!all.media.empty()) {
    chosen.media = all.media;
    chosen.metadata = all.metadata;
  } else if (!all.csv.empty()) {
    chosen.csv = all.csv;
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
  check_shards(repo, chosen.parquet);
  check_shards(repo, chosen.tars);
  check_shards(repo, chosen.csv);
  return chosen;
}

HubFiles fetch_hub_files(const formats::Hub& hub, const std::string& id) {
  formats::HubRepo repo{.kind = formats::HubRepo::Kind::kDataset, .id = id};
  const std::vector<std::string> names = hub.list(repo);
  HubFiles result;
  result.listing = select_hub_files(id, names);
  const FolderListing& files = result.listing;
  std::vector<std::string> wanted;
  for (const auto* list : {&files.parquet, &files.tars, &files.csv, &files.metadata, &files.media}) {
    wanted.insert(wanted.end(), list->begin(), list->end());
  }
  const std::set<std::string> there(names.begin(), names.end());
  for (const std::string& media : files.media) {
    const std::string caption = fs::path(media).replace_extension(".txt").generic_string();
    if (there.contains(caption)) wanted.push_back(caption);
  }
  for (const std::string& name : wanted) {
    fs::path folder = hub.fetch(repo, name);
    for (auto depth = std::count(name.begin(), name.end(), '/'); depth >= 0; --depth) folder = folder.parent_path();
    if (!result.folder.empty()) continue;
    result.folder = folder;
    // All files of one commit, although somebody may push another one meanwhile.
    repo.revision = folder.filename().string();
  }
  return result;
}

}  // namespace dfm::data
