// synthetic:butterflies.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dfm/data/butterfly_colours.h"
#include "dfm/data/source.h"
#include "formats/media_files.h"

namespace dfm::data {
namespace {

using test::error_of;

LoadLimits at_side(std::int64_t side) {
  LoadLimits limits;
  limits.short_side = side;
  return limits;
}

std::string colour_of(const std::string& caption) {
  for (const ButterflyColour& colour : kButterflyColours) {
    if (caption.find(std::string(colour.name) + " butterfly") != std::string::npos) return std::string(colour.name);
  }
  return "?";
}

TEST(Butterflies, PicturesAndClipsAlternateAndSaySo) {
  const auto source = open_source({.input = "synthetic:butterflies:6", .seed = 1});
  ASSERT_EQ(source->size(), 6U);
  EXPECT_EQ(open_source({.input = "synthetic:butterflies", .seed = 1})->size(), 1600U);
  EXPECT_EQ(source->default_encoder(), "builtin");
  std::set<std::string> names;
  for (std::size_t i = 0; i < 6; ++i) {
    const SourceItem item = source->item(i);
    const SourceMedia media = source->load(i, at_side(96));
    EXPECT_EQ(item.is_clip, i % 2 == 1);
    EXPECT_EQ(media.rgb_THW3.sizes(), (std::vector<std::int64_t>{i % 2 == 1 ? 9 : 1, 96, 96, 3}));
    EXPECT_EQ(media.fps, i % 2 == 1 ? 24 : 0);
    EXPECT_EQ(item.caption->find(" flapping its wings") != std::string::npos, item.is_clip) << *item.caption;
    EXPECT_NE(item.caption->find(" butterfly"), std::string::npos);
    names.insert(item.name);
  }
  EXPECT_EQ(names.size(), 6U);
}

TEST(Butterflies, DependOnSeedAndIndexOnly) {
  const auto one = open_source({.input = "synthetic:butterflies:20", .seed = 5}),
             same = open_source({.input = "synthetic:butterflies:500", .seed = 5}),
             other = open_source({.input = "synthetic:butterflies:20", .seed = 6});
  int different = 0;
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(one->item(i).caption, same->item(i).caption);
    EXPECT_TRUE(one->load(i, at_side(48)).rgb_THW3.equal(same->load(i, at_side(48)).rgb_THW3));
    different += one->item(i).caption != other->item(i).caption ? 1 : 0;
  }
  EXPECT_GT(different, 10);
}

TEST(Butterflies, EveryCombinationComesOnceInARun) {
  const auto source = open_source({.input = "synthetic:butterflies:768", .seed = 3});
  std::map<std::string, int> pictures, clips;
  for (std::size_t i = 0; i < 768; ++i) {
    const SourceItem item = source->item(i);
    ++(item.is_clip ? clips : pictures)[*item.caption];
  }
  EXPECT_EQ(pictures.size(), 192U);  // 8 colours x 4 backgrounds x 3 sizes x spots
  EXPECT_EQ(clips.size(), 192U);
  for (const auto& [caption, count] : pictures) EXPECT_EQ(count, 2) << caption;
}

TEST(Butterflies, DominantColourIsTheCaptions) {
  const auto source = open_source({.input = "synthetic:butterflies:384", .seed = 11});
  for (std::size_t i = 0; i < 384; i += 2) {
    const std::string caption = *source->item(i).caption;
    const at::Tensor rgb = source->load(i, at_side(48)).rgb_THW3;
    EXPECT_EQ(dominant_butterfly_colour(rgb), colour_of(caption)) << caption;
    // Blurred to blocks of 8 pixels and half as saturated, as a small model may draw it: still the same, or nothing.
    const at::Tensor blocks = rgb.to(at::kFloat).view({6, 8, 6, 8, 3}).mean({1, 3});
    const at::Tensor grey = blocks.mean(-1, true);
    const auto seen = dominant_butterfly_colour((grey + .7 * (blocks - grey)).to(at::kByte));
    EXPECT_TRUE(seen.empty() || seen == colour_of(caption)) << caption << ": " << seen;
  }
  EXPECT_EQ(dominant_butterfly_colour(at::full({8, 8, 3}, 130, at::kByte)), "");
}

TEST(Butterflies, ColoursAreFarApartInHue) {
  for (const ButterflyColour& colour : kButterflyColours) {
    const at::Tensor patch = at::empty({4, 4, 3}, at::kByte);
    for (std::size_t c = 0; c < 3; ++c) patch.select(2, static_cast<std::int64_t>(c)).fill_(colour.rgb[c]);
    EXPECT_EQ(dominant_butterfly_colour(patch), colour.name);
  }
}

TEST(Butterflies, WingsFoldWhileTheBackgroundRests) {
  const auto source = open_source({.input = "synthetic:butterflies:40", .seed = 2});
  for (std::size_t i = 1; i < 40; i += 2) {
    const at::Tensor clip = source->load(i, at_side(96)).rgb_THW3;
    const at::Tensor change = (clip[8].to(at::kInt) - clip[0].to(at::kInt)).abs().amax(-1);
    EXPECT_GT((change > 40).sum().item<std::int64_t>(), 300);
    // The corners, where no wing comes.
    for (const std::int64_t y : {0, 92})
      for (const std::int64_t x : {0, 92}) EXPECT_EQ(change.narrow(0, y, 4).narrow(1, x, 4).max().item<int>(), 0);
    // As good as symmetric about an upright axis near the middle.
    const at::Tensor wing = clip[0].to(at::kFloat), mirrored = wing.flip(1);
    EXPECT_LT((wing - mirrored).abs().mean().item<double>(), 30);
  }
}

TEST(Butterflies, FollowsLimits) {
  const auto source = open_source({.input = "synthetic:butterflies:2", .seed = 1});
  LoadLimits limits = at_side(100);
  limits.num_video_frames = 7;
  EXPECT_EQ(source->load(1, limits).rgb_THW3.sizes(), (std::vector<std::int64_t>{5, 96, 96, 3}));
  limits.num_video_frames = 121;
  limits.fps = 12;
  const SourceMedia slow = source->load(1, limits);
  EXPECT_EQ(slow.rgb_THW3.size(0), 5);
  EXPECT_TRUE(slow.rgb_THW3[4].equal(source->load(1, at_side(96)).rgb_THW3[8]));
  error_of(ExitCode::kConfig, [&] { source->load(0, at_side(8)); });
}

TEST(OpenSource, RefusesUnknownSyntheticNamesAndCounts) {
  for (const char* input : {"synthetic:moths", "synthetic:", "synthetic:butterflies:", "synthetic:butterflies:0",
                            "synthetic:butterflies:-3", "synthetic:butterflies:12x"}) {
    EXPECT_NE(error_of(ExitCode::kConfig, [&] { open_source({.input = input, .seed = 1}); }).find(input),
              std::string::npos);
  }
}

}  // namespace
}  // namespace dfm::data
