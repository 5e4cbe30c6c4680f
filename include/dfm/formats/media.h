#pragma once
// Pictures and clips. Pixels are uint8 RGB tensors: pictures [H, W, 3], clips [T, H, W, 3], contiguous, on the CPU.
// The only place that knows FFmpeg. Corrupt or truncated input is a DataError that names the file.
// docs/formats.md, "Pictures and clips", says how colours, sizes and times are treated.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace dfm::formats {

// PNG (grey, palette, alpha, 16 bit) and JPEG (grey, YCbCr). What is transparent is laid on white.
at::Tensor read_image(const std::filesystem::path& path);
// The same of bytes in memory; `name` is for messages.
at::Tensor read_image(std::span<const std::byte> bytes, const std::string& name);
struct ImageSize {
  std::int64_t height = 0, width = 0;
};
// Height and width as the header of a PNG or JPEG says, before any rotation; nothing else of the file is read.
ImageSize read_image_size(const std::filesystem::path& path);
ImageSize read_image_size(std::span<const std::byte> bytes, const std::string& name);
// Lossless RGB; written beside, then renamed. The same pixels give the same file.
void write_png(const std::filesystem::path& path, const at::Tensor& rgb_HW3);

// Antialiased resize, both axes at once (docs/formats.md says which filter and why). Thread safe.
at::Tensor resize_rgb(const at::Tensor& rgb_HW3, std::int64_t height, std::int64_t width);

// Decodes the best video stream frame by frame: memory does not grow with length. Audio is ignored. Damage in the
// file is a DataError thrown by next(), at the latest where the frames end too early.
class VideoReader {
 public:
  explicit VideoReader(const std::filesystem::path& path);
  // Of a file in memory, which the reader keeps; `name` is for messages.
  VideoReader(std::shared_ptr<const std::string> bytes, const std::string& name);
  ~VideoReader();
  VideoReader(VideoReader&&) noexcept;
  VideoReader& operator=(VideoReader&&) noexcept;
  struct Info {
    std::int64_t height = 0, width = 0;
    double fps = 0;               // frames a second on average; 0 unknown
    std::int64_t num_frames = 0;  // as the container says; 0 unknown
  };
  [[nodiscard]] const Info& info() const;
  struct Frame {
    at::Tensor rgb_HW3;
    double seconds = 0;  // presentation time from the first frame
  };
  // The next frame in order of presentation, or nothing at the end.
  std::optional<Frame> next();
  // For sampling at another rate: the frame whose time is nearest to `seconds`, which must not decrease from call to
  // call; nothing when the clip has ended by then (the last frame is shown for one frame's time). Frames between are
  // decoded, but not turned into RGB. Use either next() or nearest() on a reader.
  std::optional<Frame> nearest(double seconds);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct Mp4Options {
  double fps = 24;  // 23.976, 29.97 and 59.94 mean n x 1000 / 1001
  int crf = 18;
};
// H.264, yuv420p (BT.709, limited range), faststart. Even height and width. Written beside, then renamed. The same
// frames give the same file.
void write_mp4(const std::filesystem::path& path, const at::Tensor& rgb_THW3, const Mp4Options& options);

// The same, frames as they come: memory does not grow with the clip. Nothing has the final name before close().
class Mp4Writer {
 public:
  Mp4Writer(std::filesystem::path path, std::int64_t height, std::int64_t width, const Mp4Options& options);
  ~Mp4Writer();  // without close(): what was written is removed
  Mp4Writer(const Mp4Writer&) = delete;
  Mp4Writer& operator=(const Mp4Writer&) = delete;
  void add(const at::Tensor& rgb_THW3);
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::formats
