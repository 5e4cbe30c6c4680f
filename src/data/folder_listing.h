#pragma once
// What lies in a folder of data: names relative to it, sorted by bytes. Hidden files and folders are passed over.
#include <filesystem>
#include <string>
#include <vector>

namespace dfm::data {

struct FolderListing {
  std::vector<std::string> media;     // pictures and clips
  std::vector<std::string> metadata;  // metadata.jsonl, metadata.csv
  std::vector<std::string> parquet;
  std::vector<std::string> csv;  // others than metadata.csv
  std::vector<std::string> tars;
  std::vector<std::string> compressed_tars;  // .tgz, .tar.gz
};
FolderListing list_folder(const std::filesystem::path& folder);
// The same of names that a repository lists.
FolderListing sort_names(const std::vector<std::string>& names);

}  // namespace dfm::data
