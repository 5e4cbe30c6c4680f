// The builtin tokenizer and text encoder: geometry, causality, what a constant scale is worth, and determinism.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/base/philox.h"
#include "dfm/models/encoders.h"
#include "models/builtin/channel_statistics.h"
#include "models/builtin/dct_tokenizer.h"
#include "support/temp_folder.h"

namespace dfm::models {
namespace {

// A smooth moving scene in [-1, 1] with colour, [3, T, H, W].
at::Tensor scene(std::int64_t frames, std::int64_t height, std::int64_t width) {
  const at::Tensor t = at::arange(frames, at::kFloat).view({1, frames, 1, 1});
  const at::Tensor y = at::arange(height, at::kFloat).view({1, 1, height, 1});
  const at::Tensor x = at::arange(width, at::kFloat).view({1, 1, 1, width});
  const at::Tensor c = at::arange(3, at::kFloat).view({3, 1, 1, 1});
  return 0.5 * at::sin(0.05 * x + 0.02 * t + c) + 0.4 * at::cos(0.04 * y - 0.03 * t + 0.5 * c);
}

const VideoTokenizer& tokenizer() {
  static const std::unique_ptr<VideoTokenizer> instance = make_tokenizer("builtin", {});
  return *instance;
}

TEST(BuiltinTokenizer, HasTheGeometryOfCosmos) {
  EXPECT_EQ(tokenizer().name(), "builtin");
  for (const std::int64_t groups : {0, 1, 3}) {
    const at::Tensor pixels = scene(1 + 4 * groups, 48, 80);
    const at::Tensor latent = tokenizer().encode(pixels);
    EXPECT_EQ(latent.sizes(), (std::vector<std::int64_t>{16, 1 + groups, 6, 10}));
    EXPECT_EQ(tokenizer().decode(latent).sizes(), pixels.sizes());
  }
}

TEST(BuiltinTokenizer, FirstLatentFrameDependsOnTheFirstPixelFrameOnly) {
  const at::Tensor pixels = scene(9, 32, 32);
  at::Tensor other = pixels.clone();
  other.narrow(1, 1, 8).fill_(0.3);
  const at::Tensor a = tokenizer().encode(pixels), b = tokenizer().encode(other);
  EXPECT_TRUE(at::equal(a.narrow(1, 0, 1), b.narrow(1, 0, 1)));
  EXPECT_TRUE(at::equal(a.narrow(1, 0, 1), tokenizer().encode(pixels.narrow(1, 0, 1))));
  EXPECT_FALSE(at::equal(a.narrow(1, 1, 1), b.narrow(1, 1, 1)));
}

TEST(BuiltinTokenizer, NoLatentFrameSeesLaterPixels) {
  const at::Tensor pixels = scene(13, 16, 16);
  at::Tensor other = pixels.clone();
  other.narrow(1, 9, 4).fill_(-0.5);
  const at::Tensor a = tokenizer().encode(pixels), b = tokenizer().encode(other);
  EXPECT_TRUE(at::equal(a.narrow(1, 0, 3), b.narrow(1, 0, 3)));
  EXPECT_FALSE(at::equal(a.narrow(1, 3, 1), b.narrow(1, 3, 1)));
}

TEST(BuiltinTokenizer, KeepsSmoothScenes) {
  const at::Tensor pixels = scene(13, 64, 96);
  const at::Tensor decoded = tokenizer().decode(tokenizer().encode(pixels));
  EXPECT_GT(psnr(decoded.narrow(1, 0, 1), pixels.narrow(1, 0, 1)), 45.0);
  EXPECT_GT(psnr(decoded, pixels), 40.0);
  for (const double grey : {-1.0, 0.0, 0.7}) {
    const at::Tensor flat = at::full({3, 5, 16, 16}, grey, at::kFloat);
    EXPECT_LT((tokenizer().decode(tokenizer().encode(flat)) - flat).abs().max().item<double>(), 1e-5);
  }
}

// The code keeps 16 dimensions of a block: decoding then encoding is exact, so latents are not changed by a round trip.
TEST(BuiltinTokenizer, EncodingInvertsDecoding) {
  const at::Tensor latent = at::sin(at::arange(16 * 3 * 4 * 6, at::kFloat)).reshape({16, 3, 4, 6});
  EXPECT_LT((tokenizer().encode(tokenizer().decode(latent)) - latent).abs().max().item<double>(), 1e-5);
}

TEST(BuiltinTokenizer, TakesAnyNumberOfBlocks) {
  const at::Tensor pixels = scene(25, 512, 512);  // more blocks than are unfolded at once
  const at::Tensor whole = tokenizer().encode(pixels);
  const at::Tensor alone = tokenizer().encode(at::cat({pixels.narrow(1, 0, 1), pixels.narrow(1, 21, 4)}, 1));
  EXPECT_LT((whole.narrow(1, 6, 1) - alone.narrow(1, 1, 1)).abs().max().item<double>(), 1e-5);
  EXPECT_LT((tokenizer().decode(whole) - pixels).abs().mean().item<double>(), 0.01);
}

TEST(BuiltinTokenizer, RefusesOtherShapes) {
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{3, 4, 16, 16}, {3, 5, 20, 16}, {1, 5, 16, 16}, {3, 16, 16}, {3, 5, 0, 16}}) {
    EXPECT_THROW((void)tokenizer().encode(at::zeros(shape)), DataError);
  }
  EXPECT_THROW((void)tokenizer().decode(at::zeros({8, 1, 2, 2})), DataError);
}

TEST(BuiltinTokenizer, ScalesGiveUnitMeanSquareWithMoreLeftToStrongChannels) {
  std::array<double, kDctChannels> deviations{};
  for (std::size_t i = 0; i < deviations.size(); ++i) deviations[i] = 4.0 / static_cast<double>(1 + i);
  const ChannelScales scales = scales_from_deviations(deviations);
  double mean_square = 0;
  for (std::size_t i = 0; i < scales.size(); ++i) {
    mean_square += std::pow(deviations[i] / scales[i], 2) / static_cast<double>(scales.size());
    EXPECT_NEAR(deviations[i] / scales[i] / (deviations[0] / scales[0]), std::sqrt(deviations[i] / deviations[0]),
                1e-12);
  }
  EXPECT_NEAR(mean_square, 1.0, 1e-12);
}

const TextEncoder& encoder() {
  static const std::unique_ptr<TextEncoder> instance = make_text_encoder("builtin", {});
  return *instance;
}

TEST(BuiltinTextEncoder, GivesEachWordARowOfNormalsAndEndsInTheEndMark) {
  const auto rows = encoder().encode({"a Blue butterfly", "", "a blue moth"});
  EXPECT_EQ(rows[0].sizes(), (std::vector<std::int64_t>{4, 1024}));
  EXPECT_EQ(rows[1].sizes(), (std::vector<std::int64_t>{1, 1024}));
  EXPECT_TRUE(at::equal(rows[0].narrow(0, 0, 2), rows[2].narrow(0, 0, 2)));
  EXPECT_FALSE(at::equal(rows[0][2], rows[2][2]));
  EXPECT_NEAR(rows[0].mean().item<double>(), 0.0, 0.06);
  EXPECT_NEAR(rows[0].std().item<double>(), 1.0, 0.05);
}

// Row i is (h(w_i) + h(w_{i-1} w_i)) / sqrt 2: what prepared data sets rely on.
TEST(BuiltinTextEncoder, FollowsItsFormula) {
  const at::Tensor rows = encoder().encode({"blue moth"})[0];
  std::array<float, 1024> word{}, pair{};
  philox_normal(0, fnv1a64("moth"), Purpose::kText, 0, word);
  philox_normal(0, fnv1a64("blue moth"), Purpose::kText, 0, pair);
  for (const std::int64_t i : {0, 5, 1023}) {
    const auto u = static_cast<std::size_t>(i);
    EXPECT_NEAR(rows[1][i].item<double>(), (word[u] + pair[u]) / std::sqrt(2.0), 1e-6);
  }
}

TEST(BuiltinTextEncoder, SharedWordsLookAlikeAndOthersDoNot) {
  const auto rows = encoder().encode({"red butterfly", "blue butterfly", "red car"});
  const auto similarity = [](const at::Tensor& a, const at::Tensor& b) {
    return (a * b).sum().item<double>() / (a.norm() * b.norm()).item<double>();
  };
  EXPECT_NEAR(similarity(rows[0][1], rows[1][1]), 0.5, 0.1);  // same word after another one
  EXPECT_NEAR(similarity(rows[0][1], rows[2][1]), 0.0, 0.12);
}

TEST(BuiltinTextEncoder, GivesAtMost512Rows) {
  std::string caption;
  for (int i = 0; i < 700; ++i) caption += "wing ";
  const auto rows = encoder().encode({caption, ""});
  EXPECT_EQ(rows[0].size(0), 512);
  EXPECT_TRUE(at::equal(encoder().encode({caption + "more"})[0], rows[0]));
}

TEST(MakeEncoders, NameWhatWasAskedAndWhatThereIs) {
  const auto message = [](auto&& body) -> std::string {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const test::TempFolder home;  // an empty cache, and no network
  ::setenv("HF_HOME", home.path().c_str(), 1);
  ::setenv("HF_HUB_OFFLINE", "1", 1);
  const std::string tokenizer = message([] { make_tokenizer("nvidia/Cosmos-0.1-Tokenizer-CV4x8x8", {}); });
  EXPECT_NE(tokenizer.find("nvidia/Cosmos-0.1-Tokenizer-CV4x8x8"), std::string::npos);
  const std::string text = message([] { make_text_encoder("google-t5/t5-11b", {}); });
  EXPECT_NE(text.find("google-t5/t5-11b"), std::string::npos);
}

}  // namespace
}  // namespace dfm::models
