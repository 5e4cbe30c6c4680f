#include <ATen/ATen.h>

#include <cmath>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/media.h"
#include "formats/ffmpeg.h"
#include "formats/media_structure.h"

extern "C" {
#include <libavutil/dict.h>
}

namespace dfm::formats {
namespace {

// Containers only: playlists and the like, which FFmpeg would follow to other files and hosts, are refused.
constexpr const char* kContainers = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi";

void check_file(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw DataError("{}: got no such file, want a clip", path.string());
  if (!std::filesystem::is_regular_file(path)) {
    throw DataError("{}: got something that is not a file, want a clip", path.string());
  }
  check_clip_is_whole(path);
}

// From memory where `memory` is not nullptr, else from the file `path`.
FfmpegPtr<AVFormatContext> open_container(const std::filesystem::path& path, AVIOContext* memory,
                                          const FfmpegMessages& messages) {
  AVDictionary* options = nullptr;
  av_dict_set(&options, "format_whitelist", kContainers, 0);
  av_dict_set(&options, "protocol_whitelist", "file", 0);
  AVFormatContext* raw = avformat_alloc_context();
  if (raw == nullptr) throw std::bad_alloc();
  raw->pb = memory;
  int code = avformat_open_input(&raw, memory != nullptr ? nullptr : file_url(path).c_str(), nullptr, &options);
  av_dict_free(&options);
  FfmpegPtr<AVFormatContext> container(raw);
  if (code >= 0) code = avformat_find_stream_info(container.get(), nullptr);
  if (code < 0) {
    throw DataError("{}: cannot open: {}; hint: the clip is damaged, or not one of mp4, mov, mkv, webm, avi",
                    path.string(), messages.reason(code));
  }
  return container;
}

// The most pixels, of streams that can be decoded; cover pictures do not count. The first of equals.
AVStream* best_stream(AVFormatContext& container, const std::filesystem::path& path) {
  AVStream* best = nullptr;
  std::int64_t best_pixels = 0;
  for (unsigned i = 0; i < container.nb_streams; ++i) {
    AVStream* stream = container.streams[i];
    stream->discard = AVDISCARD_ALL;
    const AVCodecParameters& codec = *stream->codecpar;
    if (codec.codec_type != AVMEDIA_TYPE_VIDEO || (stream->disposition & AV_DISPOSITION_ATTACHED_PIC) != 0) continue;
    if (avcodec_find_decoder(codec.codec_id) == nullptr) continue;
    const std::int64_t pixels = std::int64_t{codec.width} * codec.height;
    if (pixels > best_pixels) {
      best = stream;
      best_pixels = pixels;
    }
  }
  if (best == nullptr) throw DataError("{}: got no video stream that can be decoded, want one", path.string());
  best->discard = AVDISCARD_DEFAULT;
  return best;
}

}  // namespace

struct VideoReader::State {
  State(std::filesystem::path clip, std::shared_ptr<const std::string> bytes);

  std::filesystem::path path;  // or the name of a file in memory
  FfmpegMessages messages;
  std::optional<MemoryInput> memory;  // before the container that reads it
  FfmpegPtr<AVFormatContext> container;
  AVStream* stream = nullptr;
  FfmpegPtr<AVCodecContext> decoder;
  FfmpegPtr<AVPacket> packet = make_packet();
  RgbConverter converter;
  Info info;
  std::int64_t num_decoded = 0;
  std::optional<double> first_seconds;
  double last_seconds = 0;
  bool at_end = false;

  struct Decoded {
    FfmpegPtr<AVFrame> frame;
    double seconds = 0;
  };
  std::optional<Decoded> earlier, later;  // of nearest(): the neighbours of the time asked last

  std::optional<Decoded> decode();
  Frame to_rgb(const Decoded& decoded) { return {converter.convert(*decoded.frame, path), decoded.seconds}; }

 private:
  void feed();
  [[noreturn]] void fail(int code) const;
  double presentation_seconds(const AVFrame& frame) const;
};

VideoReader::State::State(std::filesystem::path clip, std::shared_ptr<const std::string> bytes)
    : path(std::move(clip)) {
  if (bytes == nullptr) {
    check_file(path);
  } else {
    check_clip_is_whole(as_bytes(*bytes), path);
    memory.emplace(std::move(bytes));
  }
  container = open_container(path, memory ? memory->io() : nullptr, messages);
  stream = best_stream(*container, path);
  const AVCodec* codec = avcodec_find_decoder(stream->codecpar->codec_id);
  decoder = make_codec_context(codec);
  int code = avcodec_parameters_to_context(decoder.get(), stream->codecpar);
  decoder->pkt_timebase = stream->time_base;
  decoder->thread_count = 1;  // prepare decodes a clip a worker; errors come in order
  decoder->max_pixels = kMaxPixels;
  decoder->err_recognition = AV_EF_EXPLODE | AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER;
  if (code >= 0) code = avcodec_open2(decoder.get(), codec, nullptr);
  if (code < 0) fail(code);
  info.height = decoder->height;
  info.width = decoder->width;
  if (info.height < 1 || info.width < 1) throw DataError("{}: got no picture size, want one", path.string());
  const AVRational rate = stream->avg_frame_rate.num > 0 ? stream->avg_frame_rate : stream->r_frame_rate;
  info.fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
  info.num_frames = stream->nb_frames;
}

void VideoReader::State::fail(int code) const {
  throw DataError("{}: cannot decode frame {}: {}; hint: the clip is damaged or cut short", path.string(), num_decoded,
                  messages.reason(code));
}

double VideoReader::State::presentation_seconds(const AVFrame& frame) const {
  if (frame.best_effort_timestamp != AV_NOPTS_VALUE) {
    const double seconds = static_cast<double>(frame.best_effort_timestamp) * av_q2d(stream->time_base);
    if (!first_seconds || seconds - *first_seconds > last_seconds) return seconds;
  }
  // No time, or one that does not grow: one frame's time after the last.
  return first_seconds ? *first_seconds + last_seconds + 1 / (info.fps > 0 ? info.fps : 25) : 0;
}

// Gives the decoder one packet of the stream, or tells it that there are no more.
void VideoReader::State::feed() {
  while (true) {
    av_packet_unref(packet.get());
    int code = av_read_frame(container.get(), packet.get());
    if (code == AVERROR_EOF) {
      if (container->pb != nullptr && container->pb->error < 0) fail(container->pb->error);
      at_end = true;
      code = avcodec_send_packet(decoder.get(), nullptr);
      if (code < 0) fail(code);
      return;
    }
    if (code < 0) fail(code);
    if (packet->stream_index != stream->index) continue;
    if ((packet->flags & AV_PKT_FLAG_CORRUPT) != 0) fail(AVERROR_INVALIDDATA);
    code = avcodec_send_packet(decoder.get(), packet.get());
    if (code < 0) fail(code);
    return;
  }
}

std::optional<VideoReader::State::Decoded> VideoReader::State::decode() {
  messages = FfmpegMessages();
  auto frame = make_frame();
  while (true) {
    const int code = avcodec_receive_frame(decoder.get(), frame.get());
    if (code == AVERROR(EAGAIN) && !at_end) {
      feed();
      continue;
    }
    if (code == AVERROR_EOF) break;
    if (code < 0) fail(code);
    if ((frame->flags & AV_FRAME_FLAG_CORRUPT) != 0 || frame->decode_error_flags != 0) fail(AVERROR_INVALIDDATA);
    if (frame->width != info.width || frame->height != info.height) {
      throw DataError("{}: got {} x {} pixels in frame {}, want {} x {} as in the first", path.string(), frame->width,
                      frame->height, num_decoded, info.width, info.height);
    }
    const double seconds = presentation_seconds(*frame);
    if (!first_seconds) first_seconds = seconds;
    last_seconds = seconds - *first_seconds;
    ++num_decoded;
    return Decoded{std::move(frame), last_seconds};
  }
  if (num_decoded == 0) throw DataError("{}: got no frame, want at least one", path.string());
  return std::nullopt;
}

VideoReader::VideoReader(const std::filesystem::path& path) : state_(std::make_unique<State>(path, nullptr)) {}
VideoReader::VideoReader(std::shared_ptr<const std::string> bytes, const std::string& name)
    : state_(std::make_unique<State>(name, std::move(bytes))) {}
VideoReader::~VideoReader() = default;
VideoReader::VideoReader(VideoReader&&) noexcept = default;
VideoReader& VideoReader::operator=(VideoReader&&) noexcept = default;

const VideoReader::Info& VideoReader::info() const { return state_->info; }

std::optional<VideoReader::Frame> VideoReader::next() {
  const auto decoded = state_->decode();
  if (!decoded) return std::nullopt;
  return state_->to_rgb(*decoded);
}

std::optional<VideoReader::Frame> VideoReader::nearest(double seconds) {
  State& state = *state_;
  if (!state.earlier) {
    state.earlier = state.decode();
    if (!state.earlier) return std::nullopt;
    state.later = state.decode();
  }
  while (state.later && state.later->seconds < seconds) {
    state.earlier = std::move(state.later);
    state.later = state.decode();
  }
  if (state.later) {
    const bool later_is_nearer = state.later->seconds - seconds < seconds - state.earlier->seconds;
    return state.to_rgb(later_is_nearer ? *state.later : *state.earlier);
  }
  const double shown_seconds = 1 / (state.info.fps > 0 ? state.info.fps : 25);
  if (seconds > state.earlier->seconds + shown_seconds - 1e-6) return std::nullopt;
  return state.to_rgb(*state.earlier);
}

}  // namespace dfm::formats
