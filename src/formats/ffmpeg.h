#pragma once
// Owners for FFmpeg's C objects, its messages, and pixels of any format as RGB. Works with FFmpeg 5.1 and later.
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/frame.h>
#include <libswscale/swscale.h>
}

namespace dfm::formats {

struct FfmpegDelete {
  void operator()(AVIOContext* io) const {
    av_freep(&io->buffer);  // FFmpeg may have replaced the one it was given
    avio_context_free(&io);
  }
  void operator()(AVFrame* frame) const { av_frame_free(&frame); }
  void operator()(AVPacket* packet) const { av_packet_free(&packet); }
  void operator()(AVCodecContext* codec) const { avcodec_free_context(&codec); }
  void operator()(AVFormatContext* format) const { avformat_close_input(&format); }
  void operator()(SwsContext* scaler) const { sws_freeContext(scaler); }
};
template <typename T>
using FfmpegPtr = std::unique_ptr<T, FfmpegDelete>;

FfmpegPtr<AVFrame> make_frame();
FfmpegPtr<AVPacket> make_packet();
FfmpegPtr<AVCodecContext> make_codec_context(const AVCodec* codec);

// Keeps FFmpeg from writing to stderr and remembers, for this thread, what it complained about last. Decoders and
// encoders run on the calling thread (thread_count 1) where messages matter.
class FfmpegMessages {
 public:
  FfmpegMessages();  // starts afresh
  [[nodiscard]] bool any() const;
  [[nodiscard]] std::string reason(int code) const;  // the message, else the name of the code
};

// FFmpeg reads urls: "file:" keeps a colon in a name from being taken for a protocol.
inline std::string file_url(const std::filesystem::path& path) { return "file:" + path.string(); }

// A file in memory for FFmpeg's demuxers. Must outlive the format context that reads it.
class MemoryInput {
 public:
  explicit MemoryInput(std::shared_ptr<const std::string> bytes);
  [[nodiscard]] AVIOContext* io() const { return io_.get(); }

 private:
  struct Cursor {
    std::shared_ptr<const std::string> bytes;
    std::size_t position = 0;
  };
  static int read(void* cursor, std::uint8_t* out, int count);
  static std::int64_t seek(void* cursor, std::int64_t offset, int whence);

  std::unique_ptr<Cursor> cursor_;
  FfmpegPtr<AVIOContext> io_;
};

// The most pixels of a picture or frame: a hostile header must not allocate the machine's memory.
inline constexpr std::int64_t kMaxPixels = std::int64_t{1} << 27;

// A size or colour of frames that a scaler was made for is remembered, since making one costs more than using it.
class RgbConverter {
 public:
  // uint8 [H, W, 3]. Matrix, range and chroma siting are the frame's; where it names none, BT.601 full range for
  // JPEG's formats, else limited range and BT.709 from 720 lines on, BT.601 below. Alpha is laid on white.
  at::Tensor convert(const AVFrame& frame, const std::filesystem::path& path);

 private:
  FfmpegPtr<SwsContext> scaler_;
  FfmpegPtr<AVFrame> planes_;
  struct Key {
    int width = 0, height = 0, format = -1, matrix = 0, siting = 0;
    bool full_range = false;
    bool operator==(const Key&) const = default;
  } key_;
};

// A scaler of one size between two pixel formats, for the best quality: bicubic chroma, exact rounding.
// The chroma position is in 1/256 of a luma sample from the left / top luma sample; -513 unknown.
struct ScalerEnd {
  AVPixelFormat format;
  int matrix;  // SWS_CS_*
  bool full_range;
  int chroma_x = -513, chroma_y = -513;
};
FfmpegPtr<SwsContext> make_scaler(int width, int height, const ScalerEnd& from, const ScalerEnd& to);

}  // namespace dfm::formats
