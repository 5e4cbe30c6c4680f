#pragma once
// webdatasets of raw media: tars whose samples have a picture or clip (.jpg, .png, .mp4 ...) and a caption in .txt or
// in a field of .json. Samples of latents (.pth + .pickle) are refused: they are prepared already.
#include <memory>
#include <string>
#include <vector>

#include "data/table.h"
#include "dfm/data/source.h"

namespace dfm::data {

// `name` is for messages. The options' image_column names a part (`jpg`), caption_column a part (`txt`) or a field of
// the .json.
std::unique_ptr<Source> open_raw_webdataset(const std::string& name, const std::vector<NamedFile>& tars,
                                            const SourceOptions& options);

}  // namespace dfm::data
