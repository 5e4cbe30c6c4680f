// read_image, write_png, resize_rgb, contact_sheet.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>

#include "dfm/formats/contact_sheet.h"
#include "dfm/formats/media.h"
#include "formats/media_files.h"
#include "formats/small_jpegs.h"

namespace dfm::formats {
namespace {

using test::error_of;
using test::flipped;
using test::grey_jpeg;
using test::max_difference;
using test::MediaFolder;
using test::smooth_picture;
using test::write_bytes;

std::string be32(std::uint64_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
  return bytes;
}

std::string png_chunk(const std::string& type, const std::string& data) {
  const std::string checked = type + data;
  const auto crc = ::crc32(0, reinterpret_cast<const Bytef*>(checked.data()), static_cast<uInt>(checked.size()));
  return be32(data.size()) + checked + be32(crc);
}

// A PNG by hand: `rows` holds the filtered rows (a 0 byte in front of each). Chunks in `extra` stand before IDAT.
std::string png(std::uint32_t width, std::uint32_t height, int depth, int type, const std::string& rows,
                const std::string& extra = "") {
  std::string packed(::compressBound(rows.size()), '\0');
  uLongf size = packed.size();
  ::compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()), rows.size());
  packed.resize(size);
  const std::string header =
      be32(width) + be32(height) + static_cast<char>(depth) + static_cast<char>(type) + std::string(3, '\0');
  return "\x89PNG\r\n\x1a\n" + png_chunk("IHDR", header) + extra + png_chunk("IDAT", packed) + png_chunk("IEND", "");
}

at::Tensor pixels(std::vector<std::vector<int>> rgb) {
  at::Tensor result = at::empty({1, static_cast<std::int64_t>(rgb.size()), 3}, at::kByte);
  for (std::size_t x = 0; x < rgb.size(); ++x)
    for (std::size_t c = 0; c < 3; ++c)
      result[0][static_cast<std::int64_t>(x)][static_cast<std::int64_t>(c)] = rgb[x][c];
  return result;
}

std::string bytes(std::initializer_list<int> values) {
  std::string text;
  for (const int value : values) text.push_back(static_cast<char>(value));
  return text;
}

TEST(Png, ReadsBackExactlyWhatWasWritten) {
  const MediaFolder folder;
  at::Tensor picture = smooth_picture(37, 61);
  picture[0][0].zero_();
  picture[36][60].fill_(255);
  write_png(folder / "a.png", picture);
  EXPECT_TRUE(read_image(folder / "a.png").equal(picture));
  EXPECT_FALSE(std::filesystem::exists(folder / "a.png.tmp"));
  write_png(folder / "b.png", picture.permute({1, 0, 2}).contiguous().permute({1, 0, 2}));  // not contiguous
  EXPECT_EQ(read_text_file(folder / "a.png"), read_text_file(folder / "b.png"));
}

TEST(Png, ReadsGreyPaletteAlphaAndSixteenBits) {
  const MediaFolder folder;
  const auto read = [&](const std::string& file) {
    write_bytes(folder / "x.png", file);
    return read_image(folder / "x.png");
  };
  EXPECT_TRUE(read(png(2, 1, 8, 0, bytes({0, 7, 200}))).equal(pixels({{7, 7, 7}, {200, 200, 200}})));
  EXPECT_TRUE(
      read(png(2, 1, 16, 0, bytes({0, 0x12, 0x34, 0xFF, 0xFF}))).equal(pixels({{18, 18, 18}, {255, 255, 255}})));
  EXPECT_TRUE(read(png(3, 1, 1, 0, bytes({0, 0xA0}))).equal(pixels({{255, 255, 255}, {0, 0, 0}, {255, 255, 255}})));
  EXPECT_TRUE(read(png(1, 1, 16, 2, bytes({0, 1, 0, 2, 0, 0xFF, 0xFF}))).equal(pixels({{1, 2, 255}})));
  // Transparent is white, half transparent is half way there.
  EXPECT_TRUE(read(png(3, 1, 8, 6, bytes({0, 10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 255, 128})))
                  .equal(pixels({{10, 20, 30}, {255, 255, 255}, {127, 177, 255}})));
  EXPECT_TRUE(read(png(2, 1, 8, 4, bytes({0, 50, 255, 50, 0}))).equal(pixels({{50, 50, 50}, {255, 255, 255}})));
  const std::string palette = png_chunk("PLTE", bytes({1, 2, 3, 250, 150, 50}));
  EXPECT_TRUE(read(png(2, 1, 8, 3, bytes({0, 1, 0}), palette)).equal(pixels({{250, 150, 50}, {1, 2, 3}})));
  const std::string clear = png_chunk("tRNS", bytes({0}));  // entry 0 of the palette is transparent
  EXPECT_TRUE(
      read(png(2, 1, 8, 3, bytes({0, 1, 0}), palette + clear)).equal(pixels({{250, 150, 50}, {255, 255, 255}})));
}

TEST(Png, CutAnywhereIsAnErrorThatNamesTheFile) {
  const MediaFolder folder;
  write_png(folder / "whole.png", smooth_picture(40, 50));
  const std::string whole = read_text_file(folder / "whole.png");
  for (std::size_t size = 0; size < whole.size(); size += 1 + whole.size() / 60) {
    write_bytes(folder / "cut.png", whole.substr(0, size));
    const std::string message = error_of(ExitCode::kData, [&] { read_image(folder / "cut.png"); });
    EXPECT_NE(message.find("cut.png"), std::string::npos) << message;
  }
  write_bytes(folder / "cut.png", whole.substr(0, whole.size() - 1));
  EXPECT_NE(error_of(ExitCode::kData, [&] { read_image(folder / "cut.png"); }).find("cut short"), std::string::npos);
}

TEST(Png, FlippedBitIsAnError) {
  const MediaFolder folder;
  write_png(folder / "whole.png", smooth_picture(40, 50));
  const std::string whole = read_text_file(folder / "whole.png");
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    write_bytes(folder / "bad.png", flipped(whole, seed, 1));  // every bit of a PNG is checked
    error_of(ExitCode::kData, [&] { read_image(folder / "bad.png"); });
  }
}

TEST(Png, MissingRowsAreAnErrorEvenWithGoodChecksums) {
  const MediaFolder folder;
  write_bytes(folder / "short.png", png(2, 4, 8, 0, bytes({0, 7, 200, 0, 7, 200})));
  error_of(ExitCode::kData, [&] { read_image(folder / "short.png"); });
}

TEST(Png, HugeSizeInTheHeaderIsAnErrorNotAnAllocation) {
  const MediaFolder folder;
  write_bytes(folder / "huge.png", png(100000, 100000, 8, 2, bytes({0, 1, 2, 3})));
  error_of(ExitCode::kData, [&] { read_image(folder / "huge.png"); });
  write_bytes(folder / "empty.png", png(0, 0, 8, 2, ""));
  error_of(ExitCode::kData, [&] { read_image(folder / "empty.png"); });
}

TEST(Jpeg, ReadsGrey) {
  const MediaFolder folder;
  write_bytes(folder / "g.jpg", grey_jpeg() + "bytes that follow a picture do not matter");
  const at::Tensor picture = read_image(folder / "g.jpg");
  const at::Tensor ramp = (5 + 15 * at::arange(16)).view({1, 16, 1}).expand({16, 16, 3});
  ASSERT_EQ(picture.sizes(), ramp.sizes());
  EXPECT_LE(max_difference(picture, ramp), 4);
}

TEST(Jpeg, ReadsColourBaselineAndProgressive) {
  const MediaFolder folder;
  for (const std::string& file : {test::colour_jpeg(), test::progressive_jpeg()}) {
    write_bytes(folder / "c.jpg", file);
    const at::Tensor picture = read_image(folder / "c.jpg");
    ASSERT_EQ(picture.sizes(), (std::vector<std::int64_t>{16, 32, 3}));
    const at::Tensor left = picture.narrow(1, 0, 12), right = picture.narrow(1, 20, 12);  // off the seam
    EXPECT_LE(max_difference(left, pixels({{200, 50, 40}}).expand_as(left)), 4);
    EXPECT_LE(max_difference(right, pixels({{30, 90, 220}}).expand_as(right)), 4);
  }
}

TEST(Jpeg, CutAnywhereIsAnError) {
  const MediaFolder folder;
  for (const std::string& whole : {grey_jpeg(), test::progressive_jpeg()}) {
    for (std::size_t size = 0; size < whole.size(); ++size) {
      write_bytes(folder / "cut.jpg", whole.substr(0, size));
      error_of(ExitCode::kData, [&] { read_image(folder / "cut.jpg"); });
    }
  }
}

TEST(Jpeg, FlippedBitsAreAnErrorOrAPictureNeverACrash) {
  const MediaFolder folder;
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const std::string& whole = seed % 2 == 0 ? grey_jpeg() : test::progressive_jpeg();
    write_bytes(folder / "bad.jpg", flipped(whole, seed, 1 + static_cast<int>(seed % 4)));
    try {
      const at::Tensor picture = read_image(folder / "bad.jpg");
      EXPECT_EQ(picture.size(2), 3);
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 20);
}

TEST(ReadImage, SaysWhatIsWrongWithThePath) {
  const MediaFolder folder;
  write_bytes(folder / "text.png", "not a picture");
  EXPECT_NE(error_of(ExitCode::kData, [&] { read_image(folder / "text.png"); }).find("PNG or JPEG"), std::string::npos);
  EXPECT_NE(error_of(ExitCode::kData, [&] { read_image(folder / "none.png"); }).find("none.png"), std::string::npos);
  error_of(ExitCode::kData, [&] { read_image(folder.path()); });
}

TEST(ReadImage, ReadsAFileInMemoryAsOnDisk) {
  const MediaFolder folder;
  write_png(folder / "a.png", smooth_picture(40, 50));
  for (const std::string& whole : {read_text_file(folder / "a.png"), grey_jpeg(), test::progressive_jpeg()}) {
    write_bytes(folder / "on_disk", whole);
    EXPECT_TRUE(at::equal(read_image(as_bytes(whole), "in memory"), read_image(folder / "on_disk")));
    const ImageSize size = read_image_size(as_bytes(whole), "in memory"), want = read_image_size(folder / "on_disk");
    EXPECT_EQ(size.height, want.height);
    EXPECT_EQ(size.width, want.width);
    const std::string cut = whole.substr(0, whole.size() / 2);
    EXPECT_NE(error_of(ExitCode::kData, [&] { read_image(as_bytes(cut), "row 7"); }).find("row 7"), std::string::npos);
  }
  error_of(ExitCode::kData, [] { read_image(std::span<const std::byte>(), "empty"); });
  error_of(ExitCode::kData, [] { read_image_size(as_bytes("GIF89a and more of it"), "gif"); });
}

TEST(ReadImage, ReadsRealPictures) {
  const auto data = test::real_media_dir();
  if (data.empty()) GTEST_SKIP() << "no real media here; set DFM_DATA_DIR";
  const MediaFolder folder;
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data / "images")) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".txt") continue;
    const at::Tensor picture = read_image(entry.path());
    EXPECT_GE(std::min(picture.size(0), picture.size(1)), 256) << entry.path();
    EXPECT_GT(picture.to(at::kFloat).std().item<double>(), 20) << entry.path();
    ++count;
    const std::string whole = read_text_file(entry.path());
    for (const double part : {.02, .3, .6, .9, .999}) {
      const auto size = static_cast<std::size_t>(part * static_cast<double>(whole.size()));
      write_bytes(folder / ("cut" + extension), whole.substr(0, size));
      error_of(ExitCode::kData, [&] { read_image(folder / ("cut" + extension)); });
    }
  }
  EXPECT_GT(count, 0);
}

// Keys' cubic with a = -1/2, widened by the scale when it shrinks, in float64: what resize_rgb claims to be.
at::Tensor cubic_weights(std::int64_t from, std::int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), width = std::max(scale, 1.0);
  const auto cubic = [](double x) {
    x = std::abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-.5 * x + 2.5) * x - 4) * x + 2 : 0.0;
  };
  at::Tensor weights = at::zeros({to, from}, at::kDouble);
  for (std::int64_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + .5) * scale;
    for (std::int64_t j = 0; j < from; ++j) {
      weights[i][j] = cubic((static_cast<double>(j) + .5 - centre) / width);
    }
  }
  return weights / weights.sum(1, true);
}

TEST(ResizeRgb, IsTheAntialiasedCubicFilter) {
  const at::Tensor noise = (at::arange(48 * 64 * 3, at::kLong) * 7919 % 251).to(at::kByte).view({48, 64, 3});
  for (const auto& [height, width] : {std::pair{16, 16}, {32, 80}, {96, 64}}) {
    const at::Tensor rows = cubic_weights(48, height), columns = cubic_weights(64, width);
    // Columns first, then rows, with pixels between: what shoots over 255 or under 0 is cut off twice.
    const auto pixel = [](const at::Tensor& value) { return value.round().clamp(0, 255); };
    const at::Tensor narrow = pixel(at::einsum("bx,yxc->ybc", {columns, noise.to(at::kDouble)}));
    const at::Tensor want = pixel(at::einsum("ay,ybc->abc", {rows, narrow})).to(at::kByte);
    EXPECT_LE(max_difference(resize_rgb(noise, height, width), want), 1) << height << " x " << width;
  }
}

TEST(ResizeRgb, FineStripesBecomeGreyNotPatterns) {
  const at::Tensor stripes = (at::arange(512) % 2 * 255).to(at::kByte).view({1, 512, 1}).expand({64, 512, 3});
  const at::Tensor small = resize_rgb(stripes, 16, 96);
  EXPECT_LE(max_difference(small, at::full_like(small, 128)), 12);
  const at::Tensor flat = at::full({50, 70, 3}, 201, at::kByte);
  EXPECT_EQ(max_difference(resize_rgb(flat, 16, 32), at::full({16, 32, 3}, 201, at::kByte)), 0);
  EXPECT_TRUE(resize_rgb(stripes, 64, 512).equal(stripes));
}

TEST(ContactSheet, TilesPicturesOnWhite) {
  const at::Tensor red = at::zeros({4, 6, 3}, at::kByte), tall = at::ones({8, 6, 3}, at::kByte);
  const at::Tensor sheet = contact_sheet({red, tall, red}, 2, 3);
  ASSERT_EQ(sheet.sizes(), (std::vector<std::int64_t>{3 + 2 * 11, 3 + 2 * 9, 3}));
  EXPECT_EQ(sheet[0][0][0].item<int>(), 255);
  EXPECT_TRUE(sheet.narrow(0, 5, 4).narrow(1, 3, 6).equal(red));  // in the middle of its tile
  EXPECT_TRUE(sheet.narrow(0, 3, 8).narrow(1, 12, 6).equal(tall));
  EXPECT_TRUE(sheet.narrow(0, 16, 4).narrow(1, 3, 6).equal(red));
  EXPECT_EQ((sheet == 255).sum().item<std::int64_t>(), sheet.numel() - 2 * red.numel() - tall.numel());
  EXPECT_EQ(contact_sheet({red}, 5, 0).size(1), 6);  // no empty columns
}

}  // namespace
}  // namespace dfm::formats
