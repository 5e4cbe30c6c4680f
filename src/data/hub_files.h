#pragma once
// The files of a Hugging Face data set that dfm reads.
#include <filesystem>
#include <string>
#include <vector>

#include "data/folder_listing.h"
#include "dfm/formats/hub.h"

namespace dfm::data {

// Of a repository's files those of the split `train`: parquet files if there are any, else tars, else pictures and
// clips with their metadata, else csv files. Nothing that fits, and parquet or tar files of which some are missing
// (train-00001-of-00003.parquet), are a DataError.
FolderListing select_hub_files(const std::string& repo, const std::vector<std::string>& names);

// The same, downloaded, and the folder they lie in. Where the hub cannot be asked: what the cache has, but a download
// that was not finished is a DataError.
struct HubFiles {
  FolderListing listing;
  std::filesystem::path folder;
};
HubFiles fetch_hub_files(const formats::Hub& hub, const std::string& id);

}  // namespace dfm::data
