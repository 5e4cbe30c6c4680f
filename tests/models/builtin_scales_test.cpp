// The builtin tokenizer's constants against media: that they are what dfm_psnr measures, and what the code keeps.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dfm/data/source.h"
#include "models/builtin/channel_statistics.h"
#include "support/files.h"

namespace dfm::models {
namespace {

using Deviations = ChannelStatistics::Deviations;

struct Media {
  ChannelStatistics pictures, clips;
  double worst_psnr = 1000;
};

Media measure(const std::string& input, const data::LoadLimits& limits) {
  const auto tokenizer = make_tokenizer("builtin", {});
  const auto source = data::open_source({.input = input, .seed = 1234});
  Media media;
  for (std::size_t i = 0; i < source->size(); ++i) {
    const at::Tensor pixels = pixels_of_rgb(source->load(i, limits).rgb_THW3);
    (pixels.size(1) > 1 ? media.clips : media.pictures).add(*tokenizer, pixels);
    media.worst_psnr = std::min(media.worst_psnr, psnr(tokenizer->decode(tokenizer->encode(pixels)), pixels));
  }
  return media;
}

const data::LoadLimits kButterflyLimits{.short_side = 96, .num_video_frames = 9};
const data::LoadLimits kRealLimits{.short_side = 256, .num_video_frames = 17};  // as dfm_psnr measures

const Media& butterflies() {
  static const Media media = measure("synthetic:butterflies:16", kButterflyLimits);
  return media;
}

double latent_rms(const Deviations& deviations, const ChannelScales& scales) {
  double mean_square = 0;
  for (std::size_t i = 0; i < scales.size(); ++i) mean_square += std::pow(deviations[i] / scales[i], 2) / 16;
  return std::sqrt(mean_square);
}

TEST(BuiltinScales, KeepButterfliesNearUnitScale) {
  const double pictures = latent_rms(*butterflies().clips.picture_deviations(), picture_scales());
  const double groups = latent_rms(*butterflies().clips.group_deviations(), group_scales());
  EXPECT_GT(pictures, 0.6);
  EXPECT_LT(pictures, 1.5);
  EXPECT_GT(groups, 0.6);
  EXPECT_LT(groups, 1.5);
  EXPECT_GT(butterflies().worst_psnr, 18.0);
}

TEST(BuiltinScales, AreThoseMeasuredOnRealMediaAndButterflies) {
  const auto folder = test::data_dir();
  if (!folder) GTEST_SKIP() << "set DFM_DATA_DIR to a folder with images/ and videos/";
  const Media pictures = measure((*folder / "images").string(), kRealLimits);
  const Media clips = measure((*folder / "videos").string(), kRealLimits);
  const ChannelScales want_pictures =
      scales_from_deviations(combine({*pictures.pictures.picture_deviations(), *clips.clips.picture_deviations(),
                                      *butterflies().clips.picture_deviations()}));
  const ChannelScales want_groups =
      scales_from_deviations(combine({*clips.clips.group_deviations(), *butterflies().clips.group_deviations()}));
  for (std::size_t i = 0; i < want_pictures.size(); ++i) {
    EXPECT_NEAR(picture_scales()[i] / want_pictures[i], 1.0, 0.15) << "picture channel " << i;
    EXPECT_NEAR(group_scales()[i] / want_groups[i], 1.0, 0.15) << "group channel " << i;
  }
  EXPECT_GT(pictures.worst_psnr, 20.0);
  EXPECT_GT(clips.worst_psnr, 22.0);
}

}  // namespace
}  // namespace dfm::models
