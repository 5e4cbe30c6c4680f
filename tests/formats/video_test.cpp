// write_mp4 and VideoReader.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "dfm/formats/media.h"
#include "formats/media_files.h"

namespace dfm::formats {
namespace {

using test::error_of;
using test::flipped;
using test::max_difference;
using test::MediaFolder;
using test::smooth_clip;
using test::write_bytes;

struct Clip {
  at::Tensor rgb_THW3;
  std::vector<double> seconds;
  VideoReader::Info info;
};

Clip read_clip(VideoReader reader) {
  Clip clip;
  std::vector<at::Tensor> frames;
  while (auto frame = reader.next()) {
    frames.push_back(frame->rgb_HW3);
    clip.seconds.push_back(frame->seconds);
  }
  EXPECT_FALSE(reader.next().has_value());  // stays at the end
  clip.rgb_THW3 = at::stack(frames);
  clip.info = reader.info();
  return clip;
}
Clip read_clip(const std::filesystem::path& path) { return read_clip(VideoReader(path)); }
Clip read_clip_bytes(std::string bytes) {
  return read_clip(VideoReader(std::make_shared<const std::string>(std::move(bytes)), "in memory"));
}

TEST(Mp4, SmoothClipComesBack) {
  const MediaFolder folder;
  const at::Tensor clip = smooth_clip(13, 96, 160);
  write_mp4(folder / "a.mp4", clip, {.fps = 24});
  EXPECT_FALSE(std::filesystem::exists(folder / "a.mp4.tmp"));
  const Clip back = read_clip(folder / "a.mp4");
  ASSERT_EQ(back.rgb_THW3.sizes(), clip.sizes());
  EXPECT_GT(test::psnr(back.rgb_THW3, clip), 35);
  EXPECT_EQ(back.info.height, 96);
  EXPECT_EQ(back.info.width, 160);
  EXPECT_EQ(back.info.num_frames, 13);
  EXPECT_DOUBLE_EQ(back.info.fps, 24);
  for (std::size_t t = 0; t < back.seconds.size(); ++t) EXPECT_NEAR(back.seconds[t], static_cast<double>(t) / 24, 1e-4);
}

TEST(Mp4, FlatColoursComeBackWithinThree) {
  const MediaFolder folder;
  for (const std::int64_t height : {64, 720}) {  // what readers guess from the size must not matter: it is tagged
    const at::Tensor clip = at::empty({2, height, 256, 3}, at::kByte);
    const std::vector<std::vector<int>> colours{{0, 0, 0},     {255, 255, 255}, {128, 128, 128}, {214, 26, 32},
                                                {24, 160, 70}, {32, 78, 220},   {250, 232, 20},  {0, 195, 208}};
    for (std::size_t i = 0; i < colours.size(); ++i) {
      const at::Tensor patch = clip.narrow(2, 32 * static_cast<std::int64_t>(i), 32);
      for (std::size_t c = 0; c < 3; ++c) patch.select(3, static_cast<std::int64_t>(c)).fill_(colours[i][c]);
    }
    write_mp4(folder / "flat.mp4", clip, {.fps = 24, .crf = 8});
    const at::Tensor back = read_clip(folder / "flat.mp4").rgb_THW3;
    for (std::int64_t i = 0; i < 8; ++i) {
      const at::Tensor want = clip.narrow(2, 32 * i + 8, 16), got = back.narrow(2, 32 * i + 8, 16);
      EXPECT_LE(max_difference(got, want), 3) << "patch " << i << " at height " << height;
    }
  }
}

TEST(Mp4, IsFaststartTaggedAndTheSameEachTime) {
  const MediaFolder folder;
  const at::Tensor clip = smooth_clip(9, 64, 96);
  write_mp4(folder / "a.mp4", clip, {});
  write_mp4(folder / "b.mp4", clip.clone(), {});
  const std::string bytes = read_text_file(folder / "a.mp4");
  EXPECT_TRUE(bytes == read_text_file(folder / "b.mp4"));
  // Frames inside a larger tensor: what stands behind them in memory is other pixels.
  const at::Tensor larger = at::cat({clip, 255 - clip}, 2).narrow(2, 0, 96);
  write_mp4(folder / "c.mp4", larger, {});
  EXPECT_TRUE(bytes == read_text_file(folder / "c.mp4"));
  EXPECT_LT(bytes.find("moov"), bytes.find("mdat"));
  const std::size_t tag = bytes.find("colrnclx");
  ASSERT_NE(tag, std::string::npos);
  EXPECT_EQ(bytes.substr(tag + 8, 7), std::string("\0\1\0\1\0\1\0", 7));  // BT.709 thrice, limited range
  EXPECT_NE(bytes.find("avcC"), std::string::npos);
}

TEST(Mp4, KeepsRationalRates) {
  const MediaFolder folder;
  const at::Tensor clip = smooth_clip(7, 32, 32);
  const auto rate_of = [&](double fps) {
    write_mp4(folder / "r.mp4", clip, {.fps = fps});
    return VideoReader(folder / "r.mp4").info().fps;
  };
  EXPECT_DOUBLE_EQ(rate_of(30), 30);
  EXPECT_DOUBLE_EQ(rate_of(29.97), 30000.0 / 1001);
  EXPECT_DOUBLE_EQ(rate_of(24000.0 / 1001), 24000.0 / 1001);
  EXPECT_DOUBLE_EQ(rate_of(12.5), 12.5);
}

TEST(Mp4, OneFrameAndOddRequests) {
  const MediaFolder folder;
  write_mp4(folder / "one.mp4", smooth_clip(1, 32, 48), {});
  EXPECT_EQ(read_clip(folder / "one.mp4").rgb_THW3.size(0), 1);
  error_of(ExitCode::kConfig, [&] { write_mp4(folder / "x.mp4", smooth_clip(1, 33, 48), {}); });
  error_of(ExitCode::kConfig, [&] { write_mp4(folder / "x.mp4", smooth_clip(1, 32, 48), {.fps = 0}); });
  const std::string message =
      error_of(ExitCode::kData, [&] { write_mp4(folder / "none" / "x.mp4", smooth_clip(1, 32, 48), {}); });
  EXPECT_NE(message.find("x.mp4"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(folder / "x.mp4"));
}

TEST(Mp4Writer, FramesAsTheyComeGiveTheSameFile) {
  const MediaFolder folder;
  const at::Tensor clip = smooth_clip(11, 64, 96);
  write_mp4(folder / "whole.mp4", clip, {.fps = 30});
  Mp4Writer writer(folder / "parts.mp4", 64, 96, {.fps = 30});
  writer.add(clip.narrow(0, 0, 1));
  writer.add(clip.narrow(0, 1, 7));
  writer.add(clip.narrow(0, 8, 3));
  EXPECT_FALSE(std::filesystem::exists(folder / "parts.mp4"));
  writer.close();
  EXPECT_TRUE(read_text_file(folder / "whole.mp4") == read_text_file(folder / "parts.mp4"));
  error_of(ExitCode::kInternal, [&] { writer.add(clip); });
}

TEST(Mp4Writer, WithoutCloseNothingIsLeft) {
  const MediaFolder folder;
  {
    Mp4Writer writer(folder / "a.mp4", 64, 96, {});
    writer.add(smooth_clip(3, 64, 96));
    EXPECT_TRUE(std::filesystem::exists(folder / "a.mp4.tmp"));
    error_of(ExitCode::kInternal, [&] { writer.add(smooth_clip(1, 64, 64)); });
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  {
    Mp4Writer writer(folder / "b.mp4", 64, 96, {});
    error_of(ExitCode::kInternal, [&] { writer.close(); });  // no frame
  }
  error_of(ExitCode::kConfig, [&] { Mp4Writer(folder / "c.mp4", 63, 96, {}); });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(VideoReader, ReadsAFileInMemoryAsOnDisk) {
  const MediaFolder folder;
  write_mp4(folder / "a.mp4", smooth_clip(13, 96, 160), {.fps = 25});
  const std::string bytes = read_text_file(folder / "a.mp4");
  const Clip on_disk = read_clip(folder / "a.mp4"), in_memory = read_clip_bytes(bytes);
  EXPECT_TRUE(at::equal(on_disk.rgb_THW3, in_memory.rgb_THW3));
  EXPECT_EQ(on_disk.seconds, in_memory.seconds);
  EXPECT_EQ(on_disk.info.num_frames, in_memory.info.num_frames);
  for (std::size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 20) {
    const std::string message = error_of(ExitCode::kData, [&] { read_clip_bytes(bytes.substr(0, size)); });
    EXPECT_NE(message.find("in memory"), std::string::npos) << message;
  }
  error_of(ExitCode::kData, [&] { read_clip_bytes("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"); });
}

TEST(VideoReader, NearestFollowsTheTimes) {
  const MediaFolder folder;
  // Frame t is grey of brightness 20 t.
  const at::Tensor clip = (20 * at::arange(12)).to(at::kByte).view({12, 1, 1, 1}).expand({12, 32, 32, 3}).contiguous();
  write_mp4(folder / "g.mp4", clip, {.fps = 12, .crf = 5});
  const auto frames_at = [&](double fps) {
    VideoReader reader(folder / "g.mp4");
    std::vector<std::int64_t> frames;
    while (auto frame = reader.nearest(static_cast<double>(frames.size()) / fps)) {
      frames.push_back(std::llround(frame->rgb_HW3.to(at::kFloat).mean().item<double>() / 20));
    }
    return frames;
  };
  EXPECT_EQ(frames_at(12), (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(frames_at(4), (std::vector<std::int64_t>{0, 3, 6, 9}));
  EXPECT_EQ(frames_at(5), (std::vector<std::int64_t>{0, 2, 5, 7, 10}));
  EXPECT_EQ(frames_at(24).size(), 24U);
}

TEST(VideoReader, CutAnywhereIsAnErrorThatNamesTheFile) {
  const MediaFolder folder;
  write_mp4(folder / "whole.mp4", smooth_clip(13, 64, 96), {});
  const std::string whole = read_text_file(folder / "whole.mp4");
  for (std::size_t size = 0; size < whole.size(); size += 1 + whole.size() / 80) {
    write_bytes(folder / "cut.mp4", whole.substr(0, size));
    const std::string message = error_of(ExitCode::kData, [&] { read_clip(folder / "cut.mp4"); });
    EXPECT_NE(message.find("cut.mp4"), std::string::npos) << message;
  }
  write_bytes(folder / "cut.mp4", whole.substr(0, whole.size() - 1));
  EXPECT_NE(error_of(ExitCode::kData, [&] { read_clip(folder / "cut.mp4"); }).find("cut short"), std::string::npos);
}

TEST(VideoReader, FlippedBitsAreAnErrorOrFramesNeverACrash) {
  const MediaFolder folder;
  write_mp4(folder / "whole.mp4", smooth_clip(9, 64, 96), {});
  const std::string whole = read_text_file(folder / "whole.mp4");
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 250; ++seed) {
    write_bytes(folder / "bad.mp4", flipped(whole, seed, 1 + static_cast<int>(seed % 8)));
    try {
      read_clip(folder / "bad.mp4");
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 50);
}

TEST(VideoReader, RefusesWhatIsNoClip) {
  const MediaFolder folder;
  write_bytes(folder / "text.mp4", "not a clip, but longer than a header of one");
  error_of(ExitCode::kData, [&] { VideoReader reader(folder / "text.mp4"); });
  write_bytes(folder / "list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://localhost:1/a.ts\n");
  error_of(ExitCode::kData, [&] { VideoReader reader(folder / "list.mp4"); });  // names other files: never followed
  error_of(ExitCode::kData, [&] { VideoReader reader(folder / "none.mp4"); });
  error_of(ExitCode::kData, [&] { VideoReader reader(folder.path()); });
}

TEST(VideoReader, ReadsRealClips) {
  const auto data = test::real_media_dir();
  if (data.empty()) GTEST_SKIP() << "no real media here; set DFM_DATA_DIR";
  const MediaFolder folder;
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data / "videos")) {
    if (entry.path().extension() != ".mp4") continue;
    VideoReader reader(entry.path());
    EXPECT_GE(reader.info().fps, 1) << entry.path();
    const auto first = reader.next();
    ASSERT_TRUE(first.has_value()) << entry.path();
    EXPECT_EQ(first->seconds, 0);
    EXPECT_EQ(first->rgb_HW3.size(0), reader.info().height);
    const std::string whole = read_text_file(entry.path());
    write_bytes(folder / "cut.mp4", whole.substr(0, whole.size() * 9 / 10));
    error_of(ExitCode::kData, [&] { VideoReader cut(folder / "cut.mp4"); });
    ++count;
  }
  EXPECT_GT(count, 0);
}

}  // namespace
}  // namespace dfm::formats
