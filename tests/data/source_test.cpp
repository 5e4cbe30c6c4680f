// Folders of media as a source.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>

#include "dfm/base/file.h"
#include "dfm/data/source.h"
#include "dfm/formats/media.h"
#include "formats/media_files.h"
#include "formats/small_jpegs.h"

namespace dfm::data {
namespace {

using test::error_of;
using test::MediaFolder;
using test::smooth_clip;
using test::smooth_picture;
using test::write_bytes;

// A folder with two pictures and two clips, captions of all kinds, and things to pass over.
void fill(const MediaFolder& folder) {
  std::filesystem::create_directories(folder / "sub");
  formats::write_png(folder / "b.PNG", smooth_picture(40, 60));
  write_bytes(folder / "b.txt", "\xEF\xBB\xBF  a caption \r\n\n");
  formats::write_png(folder / "sub/a.png", smooth_picture(64, 32));
  formats::write_mp4(folder / "Clip.mp4", smooth_clip(11, 48, 64), {.fps = 10});
  write_bytes(folder / "Clip.txt", " \n ");
  formats::write_mp4(folder / "sub/z.mp4", smooth_clip(3, 48, 64), {.fps = 30});
  write_bytes(folder / "sub/z.txt", "zebras \xC3\xA9");
  write_bytes(folder / "notes.md", "no media");
  write_bytes(folder / "._b.png", "hidden");
}

TEST(MediaFolder, ListsByBytesWithCaptions) {
  const MediaFolder folder;
  fill(folder);
  const auto source = open_source({.input = folder.path().string(), .seed = 1});
  ASSERT_EQ(source->size(), 4U);
  EXPECT_EQ(source->item(0).name, "Clip.mp4");  // capitals come first
  EXPECT_EQ(source->item(1).name, "b.PNG");
  EXPECT_EQ(source->item(2).name, "sub/a.png");
  EXPECT_EQ(source->item(3).name, "sub/z.mp4");
  EXPECT_FALSE(source->item(0).caption.has_value());  // blank
  EXPECT_EQ(source->item(1).caption, "a caption");
  EXPECT_FALSE(source->item(2).caption.has_value());  // missing
  EXPECT_EQ(source->item(3).caption, "zebras \xC3\xA9");
  EXPECT_TRUE(source->item(0).is_clip);
  EXPECT_FALSE(source->item(1).is_clip);
  EXPECT_NE(source->description().find("2 pictures, 2 clips"), std::string::npos) << source->description();
  EXPECT_EQ(source->default_encoder(), "");
}

TEST(MediaFolder, LoadsAtTheSizeAndLengthThatLimitsAllow) {
  const MediaFolder folder;
  fill(folder);
  const auto source = open_source({.input = folder.path().string(), .seed = 1});
  LoadLimits limits;
  limits.short_side = 50;  // 50 x 75 and so on, cut to multiples of 16
  const SourceMedia picture = source->load(1, limits);
  EXPECT_EQ(picture.rgb_THW3.sizes(), (std::vector<std::int64_t>{1, 48, 64, 3}));
  EXPECT_TRUE(picture.rgb_THW3[0].equal(formats::resize_rgb(smooth_picture(40, 60), 48, 64)));
  EXPECT_EQ(picture.original_height, 40);
  EXPECT_EQ(picture.original_width, 60);
  EXPECT_EQ(picture.original_frames, 1);
  EXPECT_EQ(source->load(2, limits).rgb_THW3.sizes(), (std::vector<std::int64_t>{1, 96, 48, 3}));

  const SourceMedia clip = source->load(0, limits);
  EXPECT_EQ(clip.rgb_THW3.sizes(), (std::vector<std::int64_t>{9, 48, 64, 3}));  // 11 frames, cut to 1 + 4 n
  EXPECT_TRUE(clip.rgb_THW3.is_contiguous());
  EXPECT_GT(test::psnr(clip.rgb_THW3, smooth_clip(9, 48, 64)), 35);
  EXPECT_DOUBLE_EQ(clip.fps, 10);
  EXPECT_EQ(clip.original_frames, 11);
  EXPECT_EQ(source->load(3, limits).rgb_THW3.size(0), 1);  // 3 frames: only the first fits 1 + 4 n

  limits.num_video_frames = 8;
  EXPECT_EQ(source->load(0, limits).rgb_THW3.size(0), 5);
  limits.num_video_frames = 121;
  limits.fps = 5;  // every other frame
  const SourceMedia sampled = source->load(0, limits);
  ASSERT_EQ(sampled.rgb_THW3.size(0), 5);
  EXPECT_DOUBLE_EQ(sampled.fps, 5);
  for (std::int64_t t = 0; t < 5; ++t) EXPECT_TRUE(sampled.rgb_THW3[t].equal(clip.rgb_THW3[2 * t]));
}

TEST(MediaFolder, KnowsPixelsFromHeaders) {
  const MediaFolder folder;
  fill(folder);
  write_bytes(folder / "broken.png", "\x89PNG\r\n");
  write_bytes(folder / "broken.jpg", "\xFF\xD8\xFF\xE0\x00\x01");
  write_bytes(folder / "broken.mp4", "no clip, of course");
  const auto source = open_source({.input = folder.path().string(), .seed = 1});
  for (const std::int64_t num_frames : {121, 8}) {
    for (const double fps : {0., 5., 12.}) {
      LoadLimits limits;
      limits.short_side = 50;
      limits.num_video_frames = num_frames;
      if (fps > 0) limits.fps = fps;
      for (std::size_t i = 0; i < source->size(); ++i) {
        const std::string name = source->name(i);
        EXPECT_EQ(name, source->item(i).name);
        const bool is_broken = name.starts_with("broken");
        EXPECT_EQ(source->num_pixels(i, limits), is_broken ? 0 : source->load(i, limits).rgb_THW3.numel() / 3) << name;
      }
    }
  }
  const auto butterflies = open_source({.input = "synthetic:butterflies:4", .seed = 1});
  for (std::size_t i = 0; i < 4; ++i) {
    LoadLimits limits;
    limits.short_side = 40;
    EXPECT_EQ(butterflies->num_pixels(i, limits), butterflies->load(i, limits).rgb_THW3.numel() / 3);
  }
}

TEST(MediaFolder, LoadsFromManyThreads) {
  const MediaFolder folder;
  fill(folder);
  const auto source = open_source({.input = folder.path().string(), .seed = 1});
  LoadLimits limits;
  limits.short_side = 48;
  const at::Tensor want = source->load(0, limits).rgb_THW3;
  std::vector<std::thread> threads;
  std::vector<int> same(4, 0);
  for (std::size_t i = 0; i < same.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; ++k) same[i] += source->load(0, limits).rgb_THW3.equal(want) ? 1 : 0;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(4, 5));
}

TEST(MediaFolder, NamesWhatIsWrong) {
  const MediaFolder folder;
  const auto open = [&](const std::string& name) {
    return open_source({.input = (folder / name).string(), .seed = 1});
  };
  EXPECT_NE(error_of(ExitCode::kData, [&] { open("none"); }).find("none"), std::string::npos);
  write_bytes(folder / "file.png", "x");
  error_of(ExitCode::kData, [&] { open("file.png"); });
  write_bytes(folder / "empty/readme.md", "x");
  EXPECT_NE(error_of(ExitCode::kData, [&] { open("empty"); }).find(".jpeg, .mp4"), std::string::npos);

  std::filesystem::create_directories(folder / "odd");
  formats::write_png(folder / "odd/1.png", smooth_picture(15, 400));
  formats::write_png(folder / "odd/2.png", smooth_picture(16, 16 * 33));
  write_bytes(folder / "odd/3.jpg", "no picture");
  write_bytes(folder / "odd/4.mp4", "no clip, of course");
  write_bytes(folder / "odd/4.txt", "\xFF\xFE");
  const auto source = open("odd");
  for (std::size_t i = 0; i < 4; ++i) {
    const std::string message = error_of(ExitCode::kData, [&] { source->load(i, {}); });
    EXPECT_NE(message.find("odd/" + std::to_string(i + 1)), std::string::npos) << message;
  }
  EXPECT_NE(error_of(ExitCode::kData, [&] { source->item(3); }).find("4.txt"), std::string::npos);
  LoadLimits tiny;
  tiny.short_side = 8;
  formats::write_png(folder / "odd/1.png", smooth_picture(32, 32));
  error_of(ExitCode::kConfig, [&] { source->load(0, tiny); });
}

TEST(ImageSize, ComesFromTheHeaderAlone) {
  const MediaFolder folder;
  const auto size_of = [&](std::string_view bytes) {
    write_bytes(folder / "picture", bytes);
    const formats::ImageSize size = formats::read_image_size(folder / "picture");
    return std::pair{size.height, size.width};
  };
  using Size = std::pair<std::int64_t, std::int64_t>;
  for (const std::string& jpeg : {test::grey_jpeg(), test::colour_jpeg(), test::progressive_jpeg()}) {
    write_bytes(folder / "whole.jpg", jpeg);
    const at::Tensor picture = formats::read_image(folder / "whole.jpg");
    const Size want{picture.size(0), picture.size(1)};
    EXPECT_EQ(size_of(jpeg), want);
    // Without the picture, and with a comment and fill bytes before the frame.
    EXPECT_EQ(size_of(jpeg.substr(0, jpeg.size() - 20)), want);
    EXPECT_EQ(size_of(jpeg.substr(0, 2) + std::string("\xFF\xFE\x00\x06yes!\xFF\xFF", 10) + jpeg.substr(2)), want);
  }
  formats::write_png(folder / "p.png", smooth_picture(40, 60));
  EXPECT_EQ(size_of(read_text_file(folder / "p.png").substr(0, 24)), (Size{40, 60}));
  // Any cut is an error, never a crash or a wrong size.
  const std::string& jpeg = test::grey_jpeg();
  for (std::size_t length = 0; length < 97; ++length) {
    error_of(ExitCode::kData, [&] { size_of(jpeg.substr(0, length)); });
  }
  for (const std::string& bytes : {std::string("GIF89a, and so on and on"), std::string(100, '\0'),
                                   std::string("\xFF\xD8\xFF\xE0\x00\x01 length", 14), jpeg.substr(0, 2) + jpeg}) {
    write_bytes(folder / "odd", bytes);
    try {
      EXPECT_GT(formats::read_image_size(folder / "odd").height, 0);
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("odd"), std::string::npos);
    }
  }
}

TEST(TargetSize, ScalesTheShortSideAndCutsToMultiples) {
  const auto size = [](std::int64_t height, std::int64_t width) {
    const Size target = target_size(height, width, {});
    return std::pair{target.height, target.width};
  };
  EXPECT_EQ(size(640, 1024), std::pair(std::int64_t{512}, std::int64_t{816}));   // 819.2
  EXPECT_EQ(size(1080, 1920), std::pair(std::int64_t{512}, std::int64_t{896}));  // 910.2
  EXPECT_EQ(size(512, 512), std::pair(std::int64_t{512}, std::int64_t{512}));
  EXPECT_EQ(size(200, 100), std::pair(std::int64_t{1024}, std::int64_t{512}));
}

TEST(MediaFolder, ReadsRealMedia) {
  const auto data = test::real_media_dir();
  if (data.empty()) GTEST_SKIP() << "no real media here; set DFM_DATA_DIR";
  const auto source = open_source({.input = data.string(), .seed = 1});  // pictures and clips in sub-folders
  LoadLimits limits;
  limits.short_side = 64;
  limits.num_video_frames = 5;
  std::size_t num_clips = 0;
  for (std::size_t i = 0; i < source->size(); ++i) {
    const SourceItem item = source->item(i);
    EXPECT_TRUE(item.caption.has_value()) << item.name;
    const SourceMedia media = source->load(i, limits);
    EXPECT_EQ(media.rgb_THW3.size(0), item.is_clip ? 5 : 1) << item.name;
    EXPECT_EQ(std::min(media.rgb_THW3.size(1), media.rgb_THW3.size(2)), 64) << item.name;
    EXPECT_EQ(source->num_pixels(i, limits), media.rgb_THW3.numel() / 3) << item.name;
    EXPECT_GE(std::min(media.original_height, media.original_width), 100) << item.name;
    num_clips += item.is_clip ? 1 : 0;
  }
  EXPECT_GT(num_clips, 0U);
  EXPECT_LT(num_clips, source->size());
}

}  // namespace
}  // namespace dfm::data
