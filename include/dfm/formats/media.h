#pragma once
// Pictures and clips. Pixels are uint8 RGB tensors: pictures [H, W, 3], clips [T, H, W, 3], contiguous, on the CPU.
// The only place that knows FFmpeg. Corrupt or truncated input is a DataError that names the file.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

namespace dfm::formats {

at::Tensor read_image(const std::filesystem::path& path);
void write_png(const std::filesystem::path& path, const at::Tensor& rgb_HW3);

// Antialiased resize (docs/formats.md says which filter and why).
at::Tensor resize_rgb(const at::Tensor& rgb_HW3, std::int64_t height, std::int64_t width);

// Decodes the best video stream frame by frame: memory does not grow with length. Audio is ignored.
class VideoReader {
 public:
  explicit VideoReader(const std::filesystem::path& path);
  ~VideoReader();
  VideoReader(VideoReader&&) noexcept;
  struct Info {
    std::int64_t height = 0, width = 0;
    double fps = 0;
    std::int64_t num_frames = 0;  // as the container says; 0 unknown
  };
  [[nodiscard]] const Info& info() const;
  struct Frame {
    at::Tensor rgb_HW3;
    double seconds = 0;  // presentation time from the first frame
  };
  std::optional<Frame> next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct Mp4Options {
  double fps = 24;
  int crf = 18;
};
// H.264, yuv420p (BT.709, limited range), faststart. Even height and width. Written beside, then renamed.
void write_mp4(const std::filesystem::path& path, const at::Tensor& rgb_THW3, const Mp4Options& options);

}  // namespace dfm::formats
