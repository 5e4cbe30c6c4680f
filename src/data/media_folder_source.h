#pragma once
// A folder of pictures and clips, `name.txt` beside a file its caption.
#include <filesystem>
#include <memory>

#include "dfm/data/source.h"

namespace dfm::data {

std::unique_ptr<Source> open_media_folder(const std::filesystem::path& folder);

}  // namespace dfm::data
