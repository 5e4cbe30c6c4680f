#include "data/media_loading.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <span>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/media.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 3> kPictureExtensions{".png", ".jpg", ".jpeg"};
constexpr std::array<std::string_view, 5> kClipExtensions{".mp4", ".mov", ".mkv", ".webm", ".avi"};
constexpr std::uint64_t kMaxCaptionBytes = 1 << 20;
constexpr std::int64_t kMinSide = 16;
constexpr std::int64_t kMaxAspect = 32;  // wider pictures are mistakes, and would be huge once scaled

// Well-formed UTF-8 (Unicode 15, table 3-7): a caption goes into JSON, which knows nothing else.
bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0U; };
    const unsigned lead = byte(0);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xC2 ? 0
                               : lead < 0xE0 ? 2
                               : lead < 0xF0 ? 3
                               : lead < 0xF5 ? 4
                                             : 0;
    if (length == 0) return false;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(k) & 0xC0U) != 0x80) return false;
    }
    const unsigned second = byte(1);
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
        (lead == 0xF4 && second > 0x8F)) {
      return false;
    }
    i += length;
  }
  return true;
}

Size checked_target(const std::string& name, std::int64_t height, std::int64_t width, const LoadLimits& limits) {
  if (std::min(height, width) < kMinSide) {
    throw DataError("{}: got {} x {} pixels, want sides of at least {}", name, width, height, kMinSide);
  }
  if (std::max(height, width) > kMaxAspect * std::min(height, width)) {
    throw DataError("{}: got {} x {} pixels, want sides at most 1 : {}", name, width, height, kMaxAspect);
  }
  return target_size(height, width, limits);
}

SourceMedia load_picture(const Media& media, const LoadLimits& limits) {
  const at::Tensor rgb =
      media.bytes ? formats::read_image(as_bytes(*media.bytes), media.name) : formats::read_image(media.path);
  const Size size = checked_target(media.name, rgb.size(0), rgb.size(1), limits);
  return {formats::resize_rgb(rgb, size.height, size.width).unsqueeze(0), 0, rgb.size(0), rgb.size(1), 1};
}

formats::VideoReader open_clip(const Media& media) {
  return media.bytes ? formats::VideoReader(media.bytes, media.name) : formats::VideoReader(media.path);
}

SourceMedia load_clip(const Media& media, const LoadLimits& limits) {
  formats::VideoReader reader = open_clip(media);
  const formats::VideoReader::Info info = reader.info();
  const Size size = checked_target(media.name, info.height, info.width, limits);
  const std::int64_t k = limits.temporal_compression;
  const auto most = static_cast<std::size_t>((limits.num_video_frames - 1) / k * k + 1);
  // Scaled one by one: memory is that of the result, not of the decoded clip.
  std::vector<at::Tensor> frames;
  while (frames.size() < most) {
    const auto frame = limits.fps ? reader.nearest(static_cast<double>(frames.size()) / *limits.fps) : reader.next();
    if (!frame) break;
    frames.push_back(formats::resize_rgb(frame->rgb_HW3, size.height, size.width));
  }
  if (frames.empty()) throw DataError("{}: got no frame, want at least one", media.name);
  frames.resize((frames.size() - 1) / static_cast<std::size_t>(k) * static_cast<std::size_t>(k) + 1);
  at::Tensor clip = at::empty({static_cast<std::int64_t>(frames.size()), size.height, size.width, 3}, at::kByte);
  for (std::size_t t = 0; t < frames.size(); ++t) {
    clip[static_cast<std::int64_t>(t)].copy_(frames[t]);
    frames[t].reset();
  }
  return {clip, limits.fps.value_or(info.fps), info.height, info.width, info.num_frames};
}

// Frames that load_clip() gives, as far as the container tells.
std::int64_t num_frames_of(const formats::VideoReader::Info& info, const LoadLimits& limits) {
  std::int64_t frames = limits.num_video_frames;
  if (info.num_frames > 0) {
    const double shown = limits.fps && info.fps > 0
                             ? std::floor(static_cast<double>(info.num_frames) / info.fps * *limits.fps - 1e-6) + 1
                             : static_cast<double>(info.num_frames);
    frames = static_cast<std::int64_t>(std::clamp(shown, 1.0, static_cast<double>(frames)));
  }
  return (frames - 1) / limits.temporal_compression * limits.temporal_compression + 1;
}

}  // namespace

MediaKind kind_of_name(std::string_view name) {
  std::string extension = fs::path(name).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const auto is_in = [&](std::span<const std::string_view> list) {
    return std::find(list.begin(), list.end(), extension) != list.end();
  };
  if (is_in(kPictureExtensions)) return MediaKind::kPicture;
  return is_in(kClipExtensions) ? MediaKind::kClip : MediaKind::kOther;
}

MediaKind kind_of_bytes(std::string_view bytes) {
  const auto at = [&](std::size_t offset, std::string_view mark) {
    return bytes.size() >= offset + mark.size() && bytes.substr(offset, mark.size()) == mark;
  };
  const bool is_mp4 = at(4, "ftyp") || at(4, "moov") || at(4, "mdat");
  const bool is_matroska = at(0, "\x1A\x45\xDF\xA3");
  const bool is_avi = at(0, "RIFF") && at(8, "AVI ");
  return is_mp4 || is_matroska || is_avi ? MediaKind::kClip : MediaKind::kPicture;
}

std::string media_extensions() {
  std::string text;
  for (const std::string_view name : kPictureExtensions) text.append(text.empty() ? "" : ", ").append(name);
  for (const std::string_view name : kClipExtensions) text.append(", ").append(name);
  return text;
}

Media media_bytes(std::string name, std::string bytes) {
  const MediaKind kind = kind_of_bytes(bytes);
  return {std::move(name), kind, {}, std::make_shared<const std::string>(std::move(bytes))};
}

SourceMedia load_media(const Media& media, const LoadLimits& limits) {
  return media.kind == MediaKind::kClip ? load_clip(media, limits) : load_picture(media, limits);
}

std::int64_t num_media_pixels(const Media& media, const LoadLimits& limits) {
  try {
    if (media.kind != MediaKind::kClip) {
      const formats::ImageSize image = media.bytes ? formats::read_image_size(as_bytes(*media.bytes), media.name)
                                                   : formats::read_image_size(media.path);
      const Size size = checked_target(media.name, image.height, image.width, limits);
      return size.height * size.width;
    }
    const formats::VideoReader reader = open_clip(media);
    const Size size = checked_target(media.name, reader.info().height, reader.info().width, limits);
    return size.height * size.width * num_frames_of(reader.info(), limits);
  } catch (const DataError&) {
    return 0;  // load() says why
  }
}

std::optional<std::string> clean_caption(std::string_view text, const std::string& where) {
  if (text.size() > kMaxCaptionBytes) {
    throw DataError("{}: got {} bytes, want a caption of at most {}", where, text.size(), kMaxCaptionBytes);
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // byte order mark
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return std::nullopt;
  text = text.substr(first, text.find_last_not_of(kSpace) - first + 1);
  if (!is_utf8(text)) throw DataError("{}: got bytes that are not UTF-8, want a caption in UTF-8", where);
  return std::string(text);
}

std::optional<std::string> read_caption_beside(const fs::path& media) {
  fs::path path = media;
  path.replace_extension(".txt");
  if (!fs::is_regular_file(path)) return std::nullopt;
  if (const std::uint64_t size = fs::file_size(path); size > kMaxCaptionBytes) {
    throw DataError("{}: got {} bytes, want a caption of at most {}", path.string(), size, kMaxCaptionBytes);
  }
  return clean_caption(read_text_file(path), path.string());
}

}  // namespace dfm::data
