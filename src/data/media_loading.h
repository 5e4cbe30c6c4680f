#pragma once
// What all sources share: kinds of media, media scaled for the tokenizer, captions as they go into a sample.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "dfm/data/source.h"

namespace dfm::data {

enum class MediaKind { kOther, kPicture, kClip };
MediaKind kind_of_name(std::string_view name);    // by the ending, capitals or not
MediaKind kind_of_bytes(std::string_view bytes);  // by what containers of clips start with; else a picture
std::string media_extensions();                   // ".png, .jpg, ..."

// A picture or clip: a file, or bytes in memory.
struct Media {
  std::string name;  // for messages
  MediaKind kind = MediaKind::kPicture;
  std::filesystem::path path;
  std::shared_ptr<const std::string> bytes;  // instead of the file
};
inline Media media_file(const std::filesystem::path& path) {
  return {path.string(), kind_of_name(path.string()), path, {}};
}
Media media_bytes(std::string name, std::string bytes);

// Thread safe. Source::load() and Source::num_pixels().
SourceMedia load_media(const Media& media, const LoadLimits& limits);
std::int64_t num_media_pixels(const Media& media, const LoadLimits& limits);

// Without a byte order mark and blanks around it; nothing when it is blank. Bytes that are not UTF-8, or more than
// 1 MiB, are a DataError that begins with `where`.
std::optional<std::string> clean_caption(std::string_view text, const std::string& where);
// Of the file `x.txt` beside `x.png`; nothing where there is none.
std::optional<std::string> read_caption_beside(const std::filesystem::path& media);

}  // namespace dfm::data
