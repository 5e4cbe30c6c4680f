#pragma once
// A folder of pictures and clips. A file's caption is that of its row in metadata.jsonl or metadata.csv, else of the
// file `name.txt` beside it.
#include <filesystem>
#include <memory>

#include "data/folder_listing.h"
#include "dfm/data/source.h"

namespace dfm::data {

// `name` is for messages; `listing` says which files of the folder belong to it.
std::unique_ptr<Source> open_media_folder(const std::string& name, const std::filesystem::path& folder,
                                          FolderListing listing, const SourceOptions& options);

}  // namespace dfm::data
