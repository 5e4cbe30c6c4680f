#include "data/media_folder_source.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <span>
#include <string_view>
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

enum class Kind { kOther, kPicture, kClip };

Kind kind_of(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (std::find(kPictureExtensions.begin(), kPictureExtensions.end(), extension) != kPictureExtensions.end()) {
    return Kind::kPicture;
  }
  const bool is_clip = std::find(kClipExtensions.begin(), kClipExtensions.end(), extension) != kClipExtensions.end();
  return is_clip ? Kind::kClip : Kind::kOther;
}

std::string joined(std::span<const std::string_view> names) {
  std::string text;
  for (const std::string_view name : names) text.append(text.empty() ? "" : ", ").append(name);
  return text;
}

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

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

std::optional<std::string> read_caption(const fs::path& media) {
  fs::path path = media;
  path.replace_extension(".txt");
  if (!fs::is_regular_file(path)) return std::nullopt;
  if (const std::uint64_t size = fs::file_size(path); size > kMaxCaptionBytes) {
    throw DataError("{}: got {} bytes, want a caption of at most {}", path.string(), size, kMaxCaptionBytes);
  }
  const std::string text = read_text_file(path);
  std::string_view caption = text;
  if (caption.starts_with("\xEF\xBB\xBF")) caption.remove_prefix(3);  // byte order mark
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const std::size_t first = caption.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return std::nullopt;
  caption = caption.substr(first, caption.find_last_not_of(kSpace) - first + 1);
  if (!is_utf8(caption)) throw DataError("{}: got bytes that are not UTF-8, want a caption in UTF-8", path.string());
  return std::string(caption);
}

Size checked_target(const fs::path& path, std::int64_t height, std::int64_t width, const LoadLimits& limits) {
  if (std::min(height, width) < kMinSide) {
    throw DataError("{}: got {} x {} pixels, want sides of at least {}", path.string(), width, height, kMinSide);
  }
  if (std::max(height, width) > kMaxAspect * std::min(height, width)) {
    throw DataError("{}: got {} x {} pixels, want sides at most 1 : {}", path.string(), width, height, kMaxAspect);
  }
  return target_size(height, width, limits);
}

SourceMedia load_picture(const fs::path& path, const LoadLimits& limits) {
  const at::Tensor rgb = formats::read_image(path);
  const Size size = checked_target(path, rgb.size(0), rgb.size(1), limits);
  return {formats::resize_rgb(rgb, size.height, size.width).unsqueeze(0), 0, rgb.size(0), rgb.size(1), 1};
}

SourceMedia load_clip(const fs::path& path, const LoadLimits& limits) {
  formats::VideoReader reader(path);
  const formats::VideoReader::Info info = reader.info();
  const Size size = checked_target(path, info.height, info.width, limits);
  const std::int64_t k = limits.temporal_compression;
  const auto most = static_cast<std::size_t>((limits.num_video_frames - 1) / k * k + 1);
  // Scaled one by one: memory is that of the result, not of the decoded clip.
  std::vector<at::Tensor> frames;
  while (frames.size() < most) {
    const auto frame = limits.fps ? reader.nearest(static_cast<double>(frames.size()) / *limits.fps) : reader.next();
    if (!frame) break;
    frames.push_back(formats::resize_rgb(frame->rgb_HW3, size.height, size.width));
  }
  if (frames.empty()) throw DataError("{}: got no frame, want at least one", path.string());
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

class MediaFolderSource : public Source {
 public:
  explicit MediaFolderSource(fs::path folder);
  [[nodiscard]] std::size_t size() const override { return names_.size(); }
  [[nodiscard]] std::string name(std::size_t index) const override { return names_.at(index); }
  [[nodiscard]] std::int64_t num_pixels(std::size_t index, const LoadLimits& limits) const override {
    const fs::path path = folder_ / names_.at(index);
    try {
      if (kind_of(path) == Kind::kPicture) {
        const formats::ImageSize image = formats::read_image_size(path);
        const Size size = checked_target(path, image.height, image.width, limits);
        return size.height * size.width;
      }
      const formats::VideoReader reader(path);
      const Size size = checked_target(path, reader.info().height, reader.info().width, limits);
      return size.height * size.width * num_frames_of(reader.info(), limits);
    } catch (const DataError&) {
      return 0;  // load() says why
    }
  }
  [[nodiscard]] SourceItem item(std::size_t index) const override {
    const std::string& name = names_.at(index);
    return {name, read_caption(folder_ / name), kind_of(name) == Kind::kClip};
  }
  [[nodiscard]] SourceMedia load(std::size_t index, const LoadLimits& limits) const override {
    const fs::path path = folder_ / names_.at(index);
    return kind_of(path) == Kind::kClip ? load_clip(path, limits) : load_picture(path, limits);
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("folder {}: {} pictures, {} clips", folder_.string(), names_.size() - num_clips_, num_clips_);
  }
  [[nodiscard]] std::string default_encoder() const override { return ""; }

 private:
  fs::path folder_;
  std::vector<std::string> names_;  // relative, sorted by bytes
  std::size_t num_clips_ = 0;
};

MediaFolderSource::MediaFolderSource(fs::path folder) : folder_(std::move(folder)) {
  if (!fs::exists(folder_))
    throw DataError("{}: got no such folder, want one with pictures or clips", folder_.string());
  if (!fs::is_directory(folder_)) {
    throw DataError("{}: got something that is not a folder, want a folder of pictures and clips", folder_.string());
  }
  try {
    for (auto it = fs::recursive_directory_iterator(folder_); it != fs::recursive_directory_iterator(); ++it) {
      if (is_hidden(it->path())) {
        if (it->is_directory()) it.disable_recursion_pending();
      } else if (kind_of(it->path()) != Kind::kOther && it->is_regular_file()) {
        names_.push_back(it->path().lexically_relative(folder_).generic_string());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw DataError("{}: cannot list: {}", error.path1().string(), error.code().message());
  }
  if (names_.empty()) {
    throw DataError("{}: got no picture and no clip, want files that end in {}, {}", folder_.string(),
                    joined(kPictureExtensions), joined(kClipExtensions));
  }
  std::sort(names_.begin(), names_.end());  // std::string compares bytes as unsigned
  num_clips_ = static_cast<std::size_t>(std::count_if(
      names_.begin(), names_.end(), [](const std::string& name) { return kind_of(name) == Kind::kClip; }));
}

}  // namespace

std::unique_ptr<Source> open_media_folder(const fs::path& folder) {
  return std::make_unique<MediaFolderSource>(folder);
}

}  // namespace dfm::data
