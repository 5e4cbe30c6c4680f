#include <ATen/ATen.h>

#include <cerrno>
#include <cmath>
#include <cstring>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/media.h"
#include "formats/ffmpeg.h"

extern "C" {
#include <libavutil/dict.h>
#include <libavutil/opt.h>
}

namespace dfm::formats {
namespace {

// Television's rates are n x 1000 / 1001, written with two or three decimals by people.
AVRational frame_rate(double fps) {
  const double whole = std::round(fps);
  if (std::abs(fps - whole) < 1e-9) return {static_cast<int>(whole), 1};
  const double ntsc = std::round(fps * 1.001);
  if (std::abs(fps - ntsc / 1.001) < 6e-4) return {static_cast<int>(ntsc) * 1000, 1001};
  return av_d2q(fps, 100000);
}

// The muxer's own close needs care: the file is closed before the context is freed, errors or not.
struct OutputDelete {
  void operator()(AVFormatContext* format) const {
    avio_closep(&format->pb);
    avformat_free_context(format);
  }
};

class Mp4Muxer {
 public:
  Mp4Muxer(const std::filesystem::path& path, const std::filesystem::path& temporary, int height, int width,
           const Mp4Options& options);
  void add(const at::Tensor& rgb_HW3);
  void finish();

 private:
  void require(int code, const char* what) const;
  void open_encoder(int height, int width, const Mp4Options& options);
  void write_packets();

  const std::filesystem::path& path_;
  FfmpegMessages messages_;
  std::unique_ptr<AVFormatContext, OutputDelete> output_;
  AVStream* stream_ = nullptr;
  FfmpegPtr<AVCodecContext> encoder_;
  FfmpegPtr<SwsContext> scaler_;
  FfmpegPtr<AVFrame> rgb_ = make_frame();
  FfmpegPtr<AVFrame> frame_ = make_frame();
  FfmpegPtr<AVPacket> packet_ = make_packet();
  std::int64_t num_frames_ = 0;
};

void Mp4Muxer::require(int code, const char* what) const {
  if (code >= 0) return;
  if (code == AVERROR(ENOSPC) || code == AVERROR(EDQUOT) || code == AVERROR(EFBIG)) {
    throw ResourceError("{}: cannot {}: {}; hint: free some space", path_.string(), what, std::strerror(-code));
  }
  throw DataError("{}: cannot {}: {}", path_.string(), what, messages_.reason(code));
}

Mp4Muxer::Mp4Muxer(const std::filesystem::path& path, const std::filesystem::path& temporary, int height, int width,
                   const Mp4Options& options)
    : path_(path) {
  AVFormatContext* raw = nullptr;
  require(avformat_alloc_output_context2(&raw, nullptr, "mp4", file_url(temporary).c_str()), "write MP4");
  output_.reset(raw);
  output_->flags |= AVFMT_FLAG_BITEXACT;
  open_encoder(height, width, options);
  stream_ = avformat_new_stream(output_.get(), nullptr);
  if (stream_ == nullptr) throw std::bad_alloc();
  stream_->time_base = encoder_->time_base;
  stream_->avg_frame_rate = stream_->r_frame_rate = encoder_->framerate;
  require(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()), "write MP4");

  require(avio_open(&output_->pb, file_url(temporary).c_str(), AVIO_FLAG_WRITE), "create");
  AVDictionary* muxer_options = nullptr;
  av_dict_set(&muxer_options, "movflags", "+faststart", 0);
  const int code = avformat_write_header(output_.get(), &muxer_options);
  av_dict_free(&muxer_options);
  require(code, "write");

  // RGB's full range to television's; chroma sits on the left luma column, between rows: H.264's default.
  scaler_ = make_scaler(width, height, {AV_PIX_FMT_RGB24, SWS_CS_ITU601, true},
                        {AV_PIX_FMT_YUV420P, SWS_CS_ITU709, false, 0, 128});
  if (!scaler_) throw InternalError("{}: cannot convert RGB to yuv420p", path_.string());
  rgb_->width = width;
  rgb_->height = height;
  rgb_->format = AV_PIX_FMT_RGB24;
  require(av_frame_get_buffer(rgb_.get(), 0), "allocate a frame");
  std::memset(rgb_->buf[0]->data, 0, rgb_->buf[0]->size);
  frame_->width = width;
  frame_->height = height;
  frame_->format = AV_PIX_FMT_YUV420P;
  frame_->colorspace = AVCOL_SPC_BT709;
  frame_->color_range = AVCOL_RANGE_MPEG;
  frame_->color_primaries = AVCOL_PRI_BT709;
  frame_->color_trc = AVCOL_TRC_BT709;
  frame_->chroma_location = AVCHROMA_LOC_LEFT;
  require(av_frame_get_buffer(frame_.get(), 0), "allocate a frame");
}

void Mp4Muxer::open_encoder(int height, int width, const Mp4Options& options) {
  const AVCodec* codec = avcodec_find_encoder_by_name("libx264");
  if (codec == nullptr) {
    throw ConfigError("{}: this FFmpeg has no encoder libx264; hint: install your distribution's libavcodec",
                      path_.string());
  }
  encoder_ = make_codec_context(codec);
  encoder_->width = width;
  encoder_->height = height;
  encoder_->pix_fmt = AV_PIX_FMT_YUV420P;
  encoder_->framerate = frame_rate(options.fps);
  encoder_->time_base = av_inv_q(encoder_->framerate);
  encoder_->colorspace = AVCOL_SPC_BT709;
  encoder_->color_range = AVCOL_RANGE_MPEG;
  encoder_->color_primaries = AVCOL_PRI_BT709;
  encoder_->color_trc = AVCOL_TRC_BT709;
  encoder_->chroma_sample_location = AVCHROMA_LOC_LEFT;
  encoder_->sample_aspect_ratio = {1, 1};
  encoder_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER | AV_CODEC_FLAG_BITEXACT;
  // x264's result depends on how many threads it has, not on their timing: a fixed count gives the same file on
  // machines with few and many cores.
  encoder_->thread_count = 4;
  // mbtree off: x264's AVX-512 code for it uses memory that nobody wrote, so that files differ from run to run.
  av_opt_set(encoder_->priv_data, "mbtree", "0", 0);
  av_opt_set(encoder_->priv_data, "preset", "medium", 0);
  av_opt_set(encoder_->priv_data, "crf", std::to_string(options.crf).c_str(), 0);
  require(avcodec_open2(encoder_.get(), codec, nullptr), "open libx264");
}

void Mp4Muxer::write_packets() {
  while (true) {
    const int code = avcodec_receive_packet(encoder_.get(), packet_.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return;
    require(code, "encode");
    if (packet_->duration <= 0) packet_->duration = 1;
    av_packet_rescale_ts(packet_.get(), encoder_->time_base, stream_->time_base);
    packet_->stream_index = stream_->index;
    require(av_interleaved_write_frame(output_.get(), packet_.get()), "write");
  }
}

void Mp4Muxer::add(const at::Tensor& rgb_HW3) {
  const at::Tensor rgb = rgb_HW3.contiguous();
  require(av_frame_make_writable(frame_.get()), "allocate a frame");
  // swscale reads, and uses, a few bytes behind each row: rows of a buffer with zeros there, not of the tensor.
  const auto row_bytes = static_cast<std::size_t>(rgb_->width) * 3;
  for (int y = 0; y < rgb_->height; ++y) {
    std::memcpy(rgb_->data[0] + static_cast<std::ptrdiff_t>(y) * rgb_->linesize[0],
                rgb.data_ptr<std::uint8_t>() + static_cast<std::size_t>(y) * row_bytes, row_bytes);
  }
  if (sws_scale(scaler_.get(), rgb_->data, rgb_->linesize, 0, rgb_->height, frame_->data, frame_->linesize) !=
      rgb_->height) {
    throw InternalError("{}: cannot convert RGB to yuv420p", path_.string());
  }
  frame_->pts = num_frames_++;
  require(avcodec_send_frame(encoder_.get(), frame_.get()), "encode");
  write_packets();
}

void Mp4Muxer::finish() {
  require(avcodec_send_frame(encoder_.get(), nullptr), "encode");
  write_packets();
  require(av_write_trailer(output_.get()), "write");
  avio_flush(output_->pb);
  require(output_->pb->error, "write");
  require(avio_closep(&output_->pb), "write");
}

void check_frames(const at::Tensor& rgb) {
  if (rgb.dim() != 4 || rgb.size(3) != 3 || rgb.scalar_type() != at::kByte || !rgb.device().is_cpu() ||
      rgb.numel() == 0) {
    throw InternalError("write_mp4: got a tensor of {} dims, want uint8 [T, H, W, 3] on the CPU", rgb.dim());
  }
}

void check_clip(const std::filesystem::path& path, std::int64_t height, std::int64_t width, const Mp4Options& options) {
  if (height < 2 || width < 2 || height % 2 != 0 || width % 2 != 0 || height > kMaxPixels / width) {
    throw ConfigError("{}: got {} x {} pixels, want even sides (yuv420p), at most {} megapixels", path.string(), height,
                      width, kMaxPixels >> 20);
  }
  if (!(options.fps >= 0.1 && options.fps <= 1000)) {
    throw ConfigError("{}: got {} frames a second, want 0.1 to 1000", path.string(), options.fps);
  }
  if (options.crf < 0 || options.crf > 51)
    throw ConfigError("{}: got crf {}, want 0 to 51", path.string(), options.crf);
}

}  // namespace

struct Mp4Writer::State {
  explicit State(std::filesystem::path final_path) : path(std::move(final_path)), temporary(path) {
    temporary += ".tmp";
  }
  ~State() {
    if (closed) return;
    muxer.reset();
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::filesystem::path path, temporary;
  std::unique_ptr<Mp4Muxer> muxer;
  std::int64_t height = 0, width = 0;
  bool has_frames = false, closed = false;
};

Mp4Writer::Mp4Writer(std::filesystem::path path, std::int64_t height, std::int64_t width, const Mp4Options& options)
    : state_(std::make_unique<State>(std::move(path))) {
  check_clip(state_->path, height, width, options);
  state_->height = height;
  state_->width = width;
  state_->muxer = std::make_unique<Mp4Muxer>(state_->path, state_->temporary, static_cast<int>(height),
                                             static_cast<int>(width), options);
}

Mp4Writer::~Mp4Writer() = default;

void Mp4Writer::add(const at::Tensor& rgb_THW3) {
  State& state = *state_;
  check_frames(rgb_THW3);
  if (!state.muxer || rgb_THW3.size(1) != state.height || rgb_THW3.size(2) != state.width) {
    throw InternalError("{}: got {} x {} pixels{}, want {} x {}", state.path.string(), rgb_THW3.size(1),
                        rgb_THW3.size(2), state.muxer ? "" : " after close()", state.height, state.width);
  }
  for (std::int64_t t = 0; t < rgb_THW3.size(0); ++t) state.muxer->add(rgb_THW3[t]);
  state.has_frames = true;
}

void Mp4Writer::close() {
  State& state = *state_;
  if (!state.muxer || !state.has_frames)
    throw InternalError("{}: got no frame, want at least one", state.path.string());
  state.muxer->finish();
  state.muxer.reset();
  File(state.temporary, File::Mode::kAppend).sync();
  rename_durably(state.temporary, state.path);
  state.closed = true;
}

void write_mp4(const std::filesystem::path& path, const at::Tensor& rgb_THW3, const Mp4Options& options) {
  check_frames(rgb_THW3);
  Mp4Writer writer(path, rgb_THW3.size(1), rgb_THW3.size(2), options);
  writer.add(rgb_THW3);
  writer.close();
}

}  // namespace dfm::formats
