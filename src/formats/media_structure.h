#pragma once
// Whether media files are whole, from their outer structure alone. FFmpeg is lenient: it shows what it can of a cut
// file. Here a cut file is an error.
#include <cstddef>
#include <filesystem>
#include <span>

#include "dfm/formats/media.h"

namespace dfm::formats {

// The size of the PNG at the start of `bytes`, its chunks and their checksums verified up to IEND. DataError.
std::size_t whole_png_size(std::span<const std::byte> bytes, const std::filesystem::path& path);
// The size of the JPEG at the start of `bytes`: its segments, up to the end marker. DataError.
std::size_t whole_jpeg_size(std::span<const std::byte> bytes, const std::filesystem::path& path);
// Height and width of the PNG or JPEG from its header, a few reads. 0 x 0: neither, or it does not say. A file that
// ends before is a DataError.
ImageSize header_size(const std::filesystem::path& path);
ImageSize header_size(std::span<const std::byte> bytes, const std::filesystem::path& name);
// MP4/MOV, Matroska/WebM and AVI: every top-level element must end within the file. DataError. Other files pass.
void check_clip_is_whole(const std::filesystem::path& path);
void check_clip_is_whole(std::span<const std::byte> bytes, const std::filesystem::path& name);

}  // namespace dfm::formats
