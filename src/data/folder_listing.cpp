#include "data/folder_listing.h"

#include <algorithm>

#include "data/media_loading.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

}  // namespace

FolderListing list_folder(const fs::path& folder) {
  std::vector<std::string> names;
  try {
    for (auto it = fs::recursive_directory_iterator(folder); it != fs::recursive_directory_iterator(); ++it) {
      if (is_hidden(it->path())) {
        if (it->is_directory()) it.disable_recursion_pending();
      } else if (it->is_regular_file()) {
        names.push_back(it->path().lexically_relative(folder).generic_string());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError("{}: cannot list: {}", error.path1().string(), error.code().message());
  }
  return sort_names(names);
}

FolderListing sort_names(const std::vector<std::string>& names) {
  FolderListing listing;
  for (const std::string& name : names) {
    const fs::path path(name);
    if (std::any_of(path.begin(), path.end(), is_hidden)) continue;
    const std::string file = path.filename().string();
    if (kind_of_name(name) != MediaKind::kOther) listing.media.push_back(name);
    if (file == "metadata.jsonl" || file == "metadata.csv") listing.metadata.push_back(name);
    if (file.ends_with(".csv") && file != "metadata.csv") listing.csv.push_back(name);
    if (file.ends_with(".parquet")) listing.parquet.push_back(name);
    if (file.ends_with(".tar")) listing.tars.push_back(name);
    if (file.ends_with(".tgz") || file.ends_with(".tar.gz")) listing.compressed_tars.push_back(name);
  }
  for (auto* list :
       {&listing.media, &listing.metadata, &listing.parquet, &listing.csv, &listing.tars, &listing.compressed_tars}) {
    std::sort(list->begin(), list->end());  // std::string compares bytes as unsigned
  }
  return listing;
}

}  // namespace dfm::data
