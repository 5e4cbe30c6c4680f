#include <ATen/ATen.h>

#include <cstring>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/contact_sheet.h"
#include "dfm/formats/media.h"
#include "formats/ffmpeg.h"
#include "formats/media_structure.h"

extern "C" {
#include <libavutil/opt.h>
}

namespace dfm::formats {
namespace {

constexpr std::uint64_t kMaxImageBytes = std::uint64_t{1} << 30;
constexpr std::string_view kPngSignature = "\x89PNG\r\n\x1a\n";
constexpr std::string_view kJpegSignature = "\xFF\xD8\xFF";

void check_picture(const at::Tensor& rgb, const char* what) {
  if (rgb.dim() != 3 || rgb.size(2) != 3 || rgb.scalar_type() != at::kByte || !rgb.device().is_cpu() ||
      rgb.numel() == 0) {
    throw InternalError("{}: got a tensor of {} dims, want uint8 [H, W, 3] on the CPU", what, rgb.dim());
  }
}

// Room for a whole file in a packet, which carries the zeros that FFmpeg's readers want behind the data.
FfmpegPtr<AVPacket> packet_for(std::uint64_t size, const std::filesystem::path& path) {
  if (size > kMaxImageBytes) throw DataError("{}: got {} bytes, want at most {}", path.string(), size, kMaxImageBytes);
  auto packet = make_packet();
  if (av_new_packet(packet.get(), static_cast<int>(size)) < 0) throw std::bad_alloc();
  return packet;
}

FfmpegPtr<AVPacket> read_packet(const std::filesystem::path& path) {
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path)) {
    throw DataError("{}: got something that is not a file, want a PNG or JPEG", path.string());
  }
  const File file(path, File::Mode::kRead);
  const std::uint64_t size = file.size();
  auto packet = packet_for(size, path);
  file.read_at(0, {reinterpret_cast<std::byte*>(packet->data), size});
  return packet;
}

FfmpegPtr<AVFrame> decode_picture(AVPacket& packet, AVCodecID id, const std::filesystem::path& path) {
  const FfmpegMessages messages;
  const AVCodec* codec = avcodec_find_decoder(id);
  if (codec == nullptr) throw DataError("{}: this FFmpeg has no decoder for {}", path.string(), avcodec_get_name(id));
  auto context = make_codec_context(codec);
  context->thread_count = 1;
  context->max_pixels = kMaxPixels;
  context->err_recognition = AV_EF_EXPLODE | AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER;
  auto frame = make_frame();
  int code = avcodec_open2(context.get(), codec, nullptr);
  if (code >= 0) code = avcodec_send_packet(context.get(), &packet);
  if (code >= 0) code = avcodec_send_packet(context.get(), nullptr);
  if (code >= 0) code = avcodec_receive_frame(context.get(), frame.get());
  // The PNG decoder shows a picture with missing rows and only complains.
  const bool complained = id == AV_CODEC_ID_PNG && messages.any();
  const bool is_damaged = code >= 0 && ((frame->flags & AV_FRAME_FLAG_CORRUPT) != 0 || frame->decode_error_flags != 0);
  if (code < 0 || complained || is_damaged) {
    throw DataError("{}: cannot decode: {}; hint: the picture is damaged, cut short or larger than {} megapixels",
                    path.string(), messages.reason(code), kMaxPixels >> 20);
  }
  return frame;
}

at::Tensor decode_packet(const FfmpegPtr<AVPacket>& packet, const std::filesystem::path& path) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(packet->data),
                                         static_cast<std::size_t>(packet->size));
  AVCodecID id = AV_CODEC_ID_NONE;
  std::size_t size = 0;
  if (as_text(bytes).starts_with(kPngSignature)) {
    id = AV_CODEC_ID_PNG;
    size = whole_png_size(bytes, path);
  } else if (as_text(bytes).starts_with(kJpegSignature)) {
    id = AV_CODEC_ID_MJPEG;
    size = whole_jpeg_size(bytes, path);
  } else {
    throw DataError("{}: got neither a PNG nor a JPEG signature, want a PNG or JPEG picture", path.string());
  }
  av_shrink_packet(packet.get(), static_cast<int>(size));  // what follows the picture is not its business
  RgbConverter converter;
  return converter.convert(*decode_picture(*packet, id, path), path);
}

ImageSize checked_size(const ImageSize& size, const std::string& name) {
  if (size.height < 1 || size.width < 1) {
    throw DataError("{}: got no size in its header, want a PNG or JPEG picture", name);
  }
  return size;
}

}  // namespace

at::Tensor read_image(const std::filesystem::path& path) { return decode_packet(read_packet(path), path); }

at::Tensor read_image(std::span<const std::byte> bytes, const std::string& name) {
  const auto packet = packet_for(bytes.size(), name);
  if (!bytes.empty()) std::memcpy(packet->data, bytes.data(), bytes.size());
  return decode_packet(packet, name);
}

ImageSize read_image_size(const std::filesystem::path& path) { return checked_size(header_size(path), path.string()); }

ImageSize read_image_size(std::span<const std::byte> bytes, const std::string& name) {
  return checked_size(header_size(bytes, name), name);
}

void write_png(const std::filesystem::path& path, const at::Tensor& rgb_HW3) {
  check_picture(rgb_HW3, "write_png");
  const at::Tensor rgb = rgb_HW3.contiguous();
  const FfmpegMessages messages;
  const AVCodec* codec = avcodec_find_encoder(AV_CODEC_ID_PNG);
  if (codec == nullptr) throw ConfigError("{}: this FFmpeg has no PNG encoder", path.string());
  auto context = make_codec_context(codec);
  context->width = static_cast<int>(rgb.size(1));
  context->height = static_cast<int>(rgb.size(0));
  context->pix_fmt = AV_PIX_FMT_RGB24;
  context->time_base = {1, 1};
  context->thread_count = 1;
  context->flags |= AV_CODEC_FLAG_BITEXACT;
  av_opt_set(context->priv_data, "pred", "mixed", 0);
  auto frame = make_frame();
  frame->width = context->width;
  frame->height = context->height;
  frame->format = context->pix_fmt;
  frame->pts = 0;
  auto packet = make_packet();
  int code = avcodec_open2(context.get(), codec, nullptr);
  if (code >= 0) code = av_frame_get_buffer(frame.get(), 0);
  if (code >= 0) {
    const auto row_bytes = static_cast<std::size_t>(frame->width) * 3;
    for (int y = 0; y < frame->height; ++y) {
      std::memcpy(frame->data[0] + static_cast<std::ptrdiff_t>(y) * frame->linesize[0],
                  rgb.data_ptr<std::uint8_t>() + static_cast<std::size_t>(y) * row_bytes, row_bytes);
    }
    code = avcodec_send_frame(context.get(), frame.get());
  }
  if (code >= 0) code = avcodec_send_frame(context.get(), nullptr);
  if (code >= 0) code = avcodec_receive_packet(context.get(), packet.get());
  if (code < 0) throw DataError("{}: cannot encode as PNG: {}", path.string(), messages.reason(code));
  write_file_atomically(path, {reinterpret_cast<const char*>(packet->data), static_cast<std::size_t>(packet->size)});
}

at::Tensor resize_rgb(const at::Tensor& rgb_HW3, std::int64_t height, std::int64_t width) {
  check_picture(rgb_HW3, "resize_rgb");
  if (height < 1 || width < 1) throw InternalError("resize_rgb: got {} x {}, want sides >= 1", height, width);
  if (rgb_HW3.size(0) == height && rgb_HW3.size(1) == width) return rgb_HW3.contiguous();
  // [1, 3, H, W] in channels-last order: the memory of the picture as it is.
  const at::Tensor planes = rgb_HW3.contiguous().permute({2, 0, 1}).unsqueeze(0);
  const at::Tensor scaled = at::_upsample_bicubic2d_aa(planes, {height, width}, /*align_corners=*/false);
  return scaled.squeeze(0).permute({1, 2, 0}).contiguous();
}

at::Tensor contact_sheet(const std::vector<at::Tensor>& frames_HW3, std::int64_t columns, std::int64_t gap) {
  if (frames_HW3.empty() || columns < 1 || gap < 0) {
    throw InternalError("contact_sheet: got {} pictures, {} columns, gap {}, want >= 1, >= 1, >= 0", frames_HW3.size(),
                        columns, gap);
  }
  std::int64_t height = 0, width = 0;
  for (const at::Tensor& frame : frames_HW3) {
    check_picture(frame, "contact_sheet");
    height = std::max(height, frame.size(0));
    width = std::max(width, frame.size(1));
  }
  const auto count = static_cast<std::int64_t>(frames_HW3.size());
  columns = std::min(columns, count);
  const std::int64_t rows = (count + columns - 1) / columns;
  at::Tensor sheet = at::full({gap + rows * (height + gap), gap + columns * (width + gap), 3}, 255, at::kByte);
  for (std::int64_t i = 0; i < count; ++i) {
    const at::Tensor& frame = frames_HW3[static_cast<std::size_t>(i)];
    const std::int64_t top = gap + i / columns * (height + gap) + (height - frame.size(0)) / 2;
    const std::int64_t left = gap + i % columns * (width + gap) + (width - frame.size(1)) / 2;
    sheet.narrow(0, top, frame.size(0)).narrow(1, left, frame.size(1)).copy_(frame);
  }
  return sheet;
}

}  // namespace dfm::formats
