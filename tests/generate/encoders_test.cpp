// Encoders of a run: what fits a checkpoint and what does not, texts encoded once, and decoding frame by frame.
#include "generate/encoders.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "dfm/data/latent_scale.h"
#include "dfm/formats/media.h"
#include "generate/decode.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::generate {
namespace {

class FakeTokenizer : public models::VideoTokenizer {
 public:
  std::int64_t channels = 16, k = 4, s = 8, frames_at_once = 0;
  models::LatentStatistics statistics;
  mutable std::int64_t most_frames = 0;  // in one call of on_frames

  [[nodiscard]] std::string name() const override { return "fake"; }
  [[nodiscard]] std::int64_t latent_channels() const override { return channels; }
  [[nodiscard]] std::int64_t temporal_compression() const override { return k; }
  [[nodiscard]] std::int64_t spatial_compression() const override { return s; }
  [[nodiscard]] models::LatentStatistics latent_statistics() const override { return statistics; }
  [[nodiscard]] at::Tensor encode(const at::Tensor& pixels_CTHW) const override { return pixels_CTHW; }
  [[nodiscard]] at::Tensor decode(const at::Tensor& latent_CTHW) const override {
    const std::int64_t frames = 1 + (latent_CTHW.size(1) - 1) * k, height = latent_CTHW.size(2) * s,
                       width = latent_CTHW.size(3) * s;
    const at::Tensor ramp = at::arange(3 * frames * height * width, at::kFloat).mul(0.001).sin();
    return ramp.reshape({3, frames, height, width}) * latent_CTHW.mean();
  }
  void decode_frames(const at::Tensor& latent_CTHW,
                     const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const override {
    const at::Tensor all = decode(latent_CTHW);
    for (const at::Tensor& part : all.split(frames_at_once == 0 ? all.size(1) : frames_at_once, 1)) {
      most_frames = std::max(most_frames, part.size(1));
      on_frames(part);
    }
  }
};

class FakeTextEncoder : public models::TextEncoder {
 public:
  inline static int num_alive = 0, num_made = 0, num_encoded = 0;
  FakeTextEncoder() { ++num_alive, ++num_made; }
  ~FakeTextEncoder() override { --num_alive; }
  FakeTextEncoder(const FakeTextEncoder&) = delete;
  FakeTextEncoder& operator=(const FakeTextEncoder&) = delete;
  [[nodiscard]] std::string name() const override { return "fake"; }
  [[nodiscard]] std::int64_t width() const override { return 6; }
  [[nodiscard]] std::int64_t max_length() const override { return 512; }
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::string>& captions) const override {
    std::vector<at::Tensor> rows;
    for (const std::string& caption : captions) {
      ++num_encoded;
      rows.push_back(at::full({static_cast<std::int64_t>(caption.size()) + 1, 6}, 0.5));
    }
    return rows;
  }
};

EncoderChoice choice_of(const data::DatasetCard& card, const std::string& tokenizer = "") {
  GenerateOptions options;
  options.tokenizer = tokenizer;
  return choose_encoders(options, card, "run/model.pth");
}

TEST(EncoderChoice, IsTheCheckpointsUnlessTheOptionsNameOne) {
  data::DatasetCard card;
  card.tokenizer = "nvidia/T", card.text_encoder = "google/E";
  EXPECT_EQ(choice_of(card).tokenizer, "nvidia/T");
  EXPECT_EQ(choice_of(card).text_encoder, "google/E");
  EXPECT_EQ(choice_of(card, "./T").tokenizer, "./T");
  EXPECT_EQ(choose_encoders({}, std::nullopt, "w").tokenizer, "builtin");
}

TEST(EncoderChoice, TheSameFactsUnderAnotherNameAreAWarning) {
  data::DatasetCard card;
  card.tokenizer = "nvidia/T";
  EXPECT_EQ(check_fits(FakeTokenizer(), choice_of(card)), "");
  EXPECT_EQ(check_fits(FakeTokenizer(), choice_of(card, "./T")),
            "tokenizer ./T: the checkpoint was trained on data of nvidia/T; sizes are the same, the weights should be, "
            "too");
}

TEST(EncoderChoice, OtherLatentsAreOneLine) {
  data::DatasetCard card;
  card.tokenizer = "nvidia/T";
  FakeTokenizer other;
  other.k = 8;
  EXPECT_EQ(test::error_of([&] { check_fits(other, choice_of(card, "./T")); }),
            "2 tokenizer ./T: got 16 channels at 8x8x8, want 16 channels at 4x8x8 as run/model.pth was trained on; "
            "hint: --tokenizer nvidia/T, or the same in another place");
  data::DatasetCard narrow;
  narrow.text_width = 5;
  EXPECT_TRUE(test::error_of([&] {
                check_fits(FakeTextEncoder(), choice_of(narrow));
              }).starts_with("2 text_encoder builtin: got text rows of width 6, want 5 as run/model.pth"));
}

TEST(EncoderChoice, OtherStatisticsAreAnError) {
  data::DatasetCard card;
  card.dfm_version = "1", card.latent_channels = 2;
  FakeTokenizer tokenizer;
  tokenizer.channels = 2;
  tokenizer.statistics = {.num_frames = 1, .mean = {0.1, 0.2}, .std = {1, 2}};
  EXPECT_NE(test::error_of([&] {
              check_fits(tokenizer, choice_of(card));
            }).find("got latent statistics of 1 frames, want no latent statistics"),
            std::string::npos);
  card.latent_statistics_frames = 1, card.latent_mean = {0.1, 0.2}, card.latent_std = {1, 2};
  EXPECT_EQ(check_fits(tokenizer, choice_of(card)), "");
  card.latent_std = {1, 3};
  EXPECT_NE(test::error_of([&] { check_fits(tokenizer, choice_of(card)); }).find("want those as"), std::string::npos);
}

TEST(EncoderChoice, AnUnknownEncoderNeedsAName) {
  data::DatasetCard card;
  card.text_encoder = "unknown";
  EXPECT_TRUE(test::error_of([&] {
                open_text_encoder(choice_of(card), {}, at::kCPU);
              }).starts_with("2 text_encoder: got no name from run/model.pth, want one; hint: --text-encoder NAME"));
}

TEST(EncodeTexts, EncodesEachTextOnceAndLetsTheEncoderGo) {
  FakeTextEncoder::num_made = FakeTextEncoder::num_encoded = 0;
  const auto rows = encode_texts({"ab", "", "ab"}, *comm::World::solo(), at::kCPU,
                                 [] { return std::make_shared<FakeTextEncoder>(); });
  EXPECT_EQ(FakeTextEncoder::num_made, 1);
  EXPECT_EQ(FakeTextEncoder::num_alive, 0);
  EXPECT_EQ(FakeTextEncoder::num_encoded, 2);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].sizes(), (std::vector<std::int64_t>{3, 6}));
  EXPECT_EQ(rows[1].size(0), 1);
  EXPECT_EQ(rows[2].scalar_type(), at::kBFloat16);
}

class TooLargeTextEncoder : public FakeTextEncoder {
 public:
  [[nodiscard]] std::vector<at::Tensor> encode(const std::vector<std::string>&) const override {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "no room");
  }
};

TEST(EncodeTexts, SaysThatTheTextEncoderIsOutOfMemory) {
  EXPECT_DFM_ERROR(
      ExitCode::kResource, "text encoder fake: got no more memory on cpu",
      encode_texts({"a"}, *comm::World::solo(), at::kCPU, [] { return std::make_shared<TooLargeTextEncoder>(); }));
}

TEST(RawLatent, AppliesTheStatisticsOfTheCard) {
  data::DatasetCard card;
  const at::Tensor sampled = at::arange(4, at::kDouble).reshape({2, 1, 1, 2});
  EXPECT_TRUE(at::equal(raw_latent(sampled, data::LatentScale(card)), (2 * sampled).to(at::kFloat)));
  card.latent_channels = 2, card.latent_statistics_frames = 1;
  card.latent_mean = {10, 20}, card.latent_std = {1, 3};
  const at::Tensor want = at::tensor({10.0F, 12.0F, 32.0F, 38.0F}).reshape({2, 1, 1, 2});
  EXPECT_TRUE(at::allclose(raw_latent(sampled, data::LatentScale(card)), want));
}

TEST(DecodeToFile, FrameByFrameGivesTheBytesOfTheWhole) {
  const test::TempFolder folder;
  const at::Tensor latent = at::ones({16, 4, 4, 6});
  FakeTokenizer whole, streamed;
  streamed.frames_at_once = 3;
  const DecodedVideo video = decode_to_file(whole, latent, folder / "a.mp4", 12);
  decode_to_file(streamed, latent, folder / "b.mp4", 12);
  EXPECT_EQ(video.frames, 13);
  EXPECT_EQ(video.height, 32);
  EXPECT_EQ(video.width, 48);
  EXPECT_EQ(whole.most_frames, 13);
  EXPECT_EQ(streamed.most_frames, 3);
  EXPECT_TRUE(read_text_file(folder / "a.mp4") == read_text_file(folder / "b.mp4"));
}

// A tokenizer that fails in the middle leaves nothing behind.
TEST(DecodeToFile, LeavesNothingAfterAFailure) {
  const test::TempFolder folder;
  class Failing : public FakeTokenizer {
    void decode_frames(const at::Tensor& latent_CTHW,
                       const std::function<void(const at::Tensor& pixels_CTHW)>& on_frames) const override {
      on_frames(decode(latent_CTHW).narrow(1, 0, 2));
      throw DataError("no more");
    }
  };
  EXPECT_DFM_ERROR(ExitCode::kData, "no more",
                   (decode_to_file(Failing(), at::ones({16, 4, 4, 6}), folder / "a.mp4", 12), 0));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(DecodeToFile, WritesAPictureForOneFrame) {
  const test::TempFolder folder;
  decode_to_file(FakeTokenizer(), at::ones({16, 1, 4, 6}), folder / "a.png", 12);
  EXPECT_EQ(formats::read_image(folder / "a.png").sizes(), (std::vector<std::int64_t>{32, 48, 3}));
}

}  // namespace
}  // namespace dfm::generate
