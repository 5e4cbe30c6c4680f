#include "formats/ffmpeg.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "dfm/base/error.h"

extern "C" {
#include <libavutil/imgutils.h>
#include <libavutil/log.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
}

namespace dfm::formats {
namespace {

thread_local std::string last_message;

void keep_message(void* /*object*/, int level, const char* format, va_list arguments) {
  if (level > AV_LOG_ERROR) return;
  char text[512];
  const int length = std::vsnprintf(text, sizeof text, format, arguments);
  if (length <= 0) return;
  std::string message(text, std::min<std::size_t>(static_cast<std::size_t>(length), sizeof text - 1));
  while (!message.empty() && (message.back() == '\n' || message.back() == '.')) message.pop_back();
  if (!message.empty()) last_message = std::move(message);
}

template <typename T>
FfmpegPtr<T> owned(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return FfmpegPtr<T>(pointer);
}

std::uint8_t on_white(std::uint32_t value, std::uint32_t alpha) {
  return static_cast<std::uint8_t>((value * alpha + 255 * (255 - alpha) + 127) / 255);
}

// Palette entries are native-endian 0xAARRGGBB.
void convert_palette_row(const AVFrame& frame, int y, std::uint8_t* out) {
  const std::uint8_t* row = frame.data[0] + static_cast<std::ptrdiff_t>(y) * frame.linesize[0];
  for (int x = 0; x < frame.width; ++x) {
    std::uint32_t entry = 0;
    std::memcpy(&entry, frame.data[1] + 4 * row[x], 4);
    for (int c = 0; c < 3; ++c) *out++ = on_white((entry >> (16 - 8 * c)) & 255, entry >> 24);
  }
}

// Any format made of grey or RGB components, of any depth, with or without alpha. Exact to rounding, which swscale,
// going through YUV, is not.
at::Tensor convert_direct(const AVFrame& frame, const AVPixFmtDescriptor& format) {
  const auto width = static_cast<std::size_t>(frame.width);
  at::Tensor rgb = at::empty({frame.height, frame.width, 3}, at::kByte);
  std::uint8_t* out = rgb.data_ptr<std::uint8_t>();
  const bool has_alpha = (format.flags & AV_PIX_FMT_FLAG_ALPHA) != 0;
  const int num_colours = format.nb_components - (has_alpha ? 1 : 0);
  const bool limited = num_colours == 1 && format.comp[0].depth >= 8 && frame.color_range == AVCOL_RANGE_MPEG;
  std::vector<std::uint16_t> line(width);
  std::vector<std::uint8_t> planes(4 * width, 255);
  const std::uint8_t* data[4] = {frame.data[0], frame.data[1], frame.data[2], frame.data[3]};
  for (int y = 0; y < frame.height; ++y, out += 3 * width) {
    if (frame.format == AV_PIX_FMT_RGB24) {
      std::memcpy(out, frame.data[0] + static_cast<std::ptrdiff_t>(y) * frame.linesize[0], 3 * width);
      continue;
    }
    if ((format.flags & AV_PIX_FMT_FLAG_PAL) != 0) {
      convert_palette_row(frame, y, out);
      continue;
    }
    for (int c = 0; c < format.nb_components; ++c) {
      av_read_image_line2(line.data(), data, frame.linesize, &format, 0, y, c, frame.width, 0, 2);
      const bool is_alpha = c == num_colours;
      const std::uint32_t depth = static_cast<std::uint32_t>(format.comp[c].depth);
      const std::int64_t low = limited && !is_alpha ? std::int64_t{16} << (depth - 8) : 0;
      const std::int64_t range =
          limited && !is_alpha ? std::int64_t{219} << (depth - 8) : (std::int64_t{1} << depth) - 1;
      std::uint8_t* plane = planes.data() + static_cast<std::size_t>(is_alpha ? 3 : c) * width;
      for (std::size_t x = 0; x < width; ++x) {
        const std::int64_t value = std::clamp<std::int64_t>(line[x] - low, 0, range);
        plane[x] = static_cast<std::uint8_t>((value * 255 + range / 2) / range);
      }
    }
    for (std::size_t x = 0; x < width; ++x) {
      for (std::size_t c = 0; c < 3; ++c) {
        const std::size_t plane = num_colours == 1 ? 0 : c;
        out[3 * x + c] = on_white(planes[plane * width + x], planes[3 * width + x]);
      }
    }
  }
  return rgb;
}

bool is_jpeg_format(AVPixelFormat format) {
  return format == AV_PIX_FMT_YUVJ420P || format == AV_PIX_FMT_YUVJ422P || format == AV_PIX_FMT_YUVJ444P ||
         format == AV_PIX_FMT_YUVJ440P || format == AV_PIX_FMT_YUVJ411P;
}

int scaler_matrix(const AVFrame& frame, bool is_jpeg) {
  switch (frame.colorspace) {
    case AVCOL_SPC_BT709:
      return SWS_CS_ITU709;
    case AVCOL_SPC_FCC:
      return SWS_CS_FCC;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
      return SWS_CS_ITU601;
    case AVCOL_SPC_SMPTE240M:
      return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL:
      return SWS_CS_BT2020;
    default:
      return !is_jpeg && frame.height >= 720 ? SWS_CS_ITU709 : SWS_CS_ITU601;
  }
}

// Only 4:2:0 and 4:2:2 have a choice; MPEG's habit is left, JPEG's is the middle.
AVChromaLocation siting_of(const AVFrame& frame, bool is_jpeg) {
  if (frame.chroma_location != AVCHROMA_LOC_UNSPECIFIED) return frame.chroma_location;
  return is_jpeg ? AVCHROMA_LOC_CENTER : AVCHROMA_LOC_LEFT;
}

}  // namespace

FfmpegPtr<AVFrame> make_frame() { return owned(av_frame_alloc()); }
FfmpegPtr<AVPacket> make_packet() { return owned(av_packet_alloc()); }
FfmpegPtr<AVCodecContext> make_codec_context(const AVCodec* codec) { return owned(avcodec_alloc_context3(codec)); }

MemoryInput::MemoryInput(std::shared_ptr<const std::string> bytes)
    : cursor_(std::make_unique<Cursor>(Cursor{std::move(bytes), 0})) {
  constexpr int kBufferBytes = 1 << 16;
  auto* buffer = static_cast<unsigned char*>(av_malloc(kBufferBytes));
  if (buffer == nullptr) throw std::bad_alloc();
  AVIOContext* io = avio_alloc_context(buffer, kBufferBytes, /*write_flag=*/0, cursor_.get(), read, nullptr, seek);
  if (io == nullptr) av_free(buffer);
  io_ = owned(io);
}

int MemoryInput::read(void* cursor, std::uint8_t* out, int count) {
  auto& input = *static_cast<Cursor*>(cursor);
  const std::size_t left = input.bytes->size() - input.position;
  if (left == 0) return AVERROR_EOF;
  const std::size_t taken = std::min(left, static_cast<std::size_t>(std::max(count, 0)));
  std::memcpy(out, input.bytes->data() + input.position, taken);
  input.position += taken;
  return static_cast<int>(taken);
}

std::int64_t MemoryInput::seek(void* cursor, std::int64_t offset, int whence) {
  auto& input = *static_cast<Cursor*>(cursor);
  const auto size = static_cast<std::int64_t>(input.bytes->size());
  if ((whence & AVSEEK_SIZE) != 0) return size;
  whence &= ~AVSEEK_FORCE;
  if (whence == SEEK_CUR) offset += static_cast<std::int64_t>(input.position);
  if (whence == SEEK_END) offset += size;
  if (offset < 0 || offset > size) return AVERROR(EINVAL);
  input.position = static_cast<std::size_t>(offset);
  return offset;
}

FfmpegMessages::FfmpegMessages() {
  static std::once_flag once;
  std::call_once(once, [] { av_log_set_callback(keep_message); });
  last_message.clear();
}

bool FfmpegMessages::any() const { return !last_message.empty(); }

std::string FfmpegMessages::reason(int code) const {
  if (any()) return last_message;
  char text[AV_ERROR_MAX_STRING_SIZE] = {};
  av_strerror(code, text, sizeof text);
  return text;
}

FfmpegPtr<SwsContext> make_scaler(int width, int height, const ScalerEnd& from, const ScalerEnd& to) {
  auto scaler = owned(sws_alloc_context());
  const auto set = [&scaler](const char* name, std::int64_t value) { av_opt_set_int(scaler.get(), name, value, 0); };
  set("srcw", width);
  set("srch", height);
  set("dstw", width);
  set("dsth", height);
  set("src_format", from.format);
  set("dst_format", to.format);
  set("src_range", from.full_range ? 1 : 0);
  set("dst_range", to.full_range ? 1 : 0);
  set("src_h_chr_pos", from.chroma_x);
  set("src_v_chr_pos", from.chroma_y);
  set("dst_h_chr_pos", to.chroma_x);
  set("dst_v_chr_pos", to.chroma_y);
  set("sws_flags", SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_BITEXACT);
  if (sws_init_context(scaler.get(), nullptr, nullptr) < 0) return nullptr;
  sws_setColorspaceDetails(scaler.get(), sws_getCoefficients(from.matrix), from.full_range ? 1 : 0,
                           sws_getCoefficients(to.matrix), to.full_range ? 1 : 0, 0, 1 << 16, 1 << 16);
  return scaler;
}

at::Tensor RgbConverter::convert(const AVFrame& frame, const std::filesystem::path& path) {
  const auto format = static_cast<AVPixelFormat>(frame.format);
  const AVPixFmtDescriptor* descriptor = av_pix_fmt_desc_get(format);
  if (descriptor == nullptr || (descriptor->flags & (AV_PIX_FMT_FLAG_HWACCEL | AV_PIX_FMT_FLAG_BAYER)) != 0) {
    throw DataError("{}: got pixel format {}, want grey, RGB or YUV", path.string(),
                    descriptor ? descriptor->name : "?");
  }
  const bool is_float = (descriptor->flags & AV_PIX_FMT_FLAG_FLOAT) != 0;
  const bool is_direct =
      (descriptor->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL)) != 0 || descriptor->nb_components <= 2;
  if (is_direct && !is_float) return convert_direct(frame, *descriptor);

  const bool is_jpeg = is_jpeg_format(format);
  const AVChromaLocation siting = siting_of(frame, is_jpeg);
  const Key key{frame.width,
                frame.height,
                frame.format,
                scaler_matrix(frame, is_jpeg),
                static_cast<int>(siting),
                is_jpeg || frame.color_range == AVCOL_RANGE_JPEG};
  if (!scaler_ || !(key == key_)) {
    // Left, top-left, bottom-left sit on a luma column; left and centre lie between two rows, top ones on a row.
    const bool on_column =
        siting == AVCHROMA_LOC_LEFT || siting == AVCHROMA_LOC_TOPLEFT || siting == AVCHROMA_LOC_BOTTOMLEFT;
    const bool on_row = siting == AVCHROMA_LOC_TOP || siting == AVCHROMA_LOC_TOPLEFT;
    ScalerEnd from{format, key.matrix, key.full_range};
    if (descriptor->log2_chroma_w == 1) from.chroma_x = on_column ? 0 : 128;
    if (descriptor->log2_chroma_h == 1) from.chroma_y = on_row ? 0 : 128;
    // Planes, not RGB24: swscale has no vector code for packed pixels at this quality, and is five times slower.
    scaler_ = make_scaler(frame.width, frame.height, from, {AV_PIX_FMT_GBRP, SWS_CS_ITU601, true});
    key_ = key;
    if (!scaler_) {
      throw DataError("{}: got pixel format {}, want one that converts to RGB", path.string(), descriptor->name);
    }
    planes_ = make_frame();
    planes_->width = frame.width;
    planes_->height = frame.height;
    planes_->format = AV_PIX_FMT_GBRP;
    if (av_frame_get_buffer(planes_.get(), 0) < 0) throw std::bad_alloc();
  }
  if (sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, planes_->data, planes_->linesize) !=
      frame.height) {
    throw DataError("{}: cannot convert pixels to RGB", path.string());
  }
  at::Tensor rgb = at::empty({frame.height, frame.width, 3}, at::kByte);
  std::uint8_t* out = rgb.data_ptr<std::uint8_t>();
  for (int y = 0; y < frame.height; ++y) {
    const std::uint8_t* green = planes_->data[0] + static_cast<std::ptrdiff_t>(y) * planes_->linesize[0];
    const std::uint8_t* blue = planes_->data[1] + static_cast<std::ptrdiff_t>(y) * planes_->linesize[1];
    const std::uint8_t* red = planes_->data[2] + static_cast<std::ptrdiff_t>(y) * planes_->linesize[2];
    for (int x = 0; x < frame.width; ++x, out += 3) {
      out[0] = red[x];
      out[1] = green[x];
      out[2] = blue[x];
    }
  }
  return rgb;
}

}  // namespace dfm::formats
