// From a checkpoint on disk to files on disk, with a tiny random model.
#include "dfm/generate/generate.h"

#include <gtest/gtest.h>

#include <limits>

#include "dfm/base/file.h"
#include "dfm/formats/media.h"
#include "generate/tiny_model.h"

namespace dfm::generate {
namespace {

namespace fs = std::filesystem;

class GenerateTest : public testing::Test {
 protected:
  GenerateTest() {
    data::DatasetCard card;
    card.fps = 12;
    test::write_iteration(run_, 3, test::tiny_weights(), card);
  }

  [[nodiscard]] GenerateOptions options(const std::string& name) const {
    GenerateOptions options;
    options.prompt = "a blue butterfly";
    options.checkpoint = run_;
    options.height = 32;
    options.width = 48;
    options.num_video_frames = 5;
    options.num_steps = 4;
    options.guidance = 1.5;
    options.video_save_path = folder_.path() / "out" / name;
    return options;
  }

  // The bytes of the only file that these options make.
  [[nodiscard]] static std::string bytes_of(const GenerateOptions& options) {
    const auto files = run(options, {});
    EXPECT_EQ(files.size(), 1U);
    return read_text_file(files.at(0).path);
  }

  test::TempFolder folder_;
  fs::path run_ = folder_.path() / "run";
};

TEST_F(GenerateTest, WritesTheClipThatWasAskedFor) {
  const auto files = run(options("clip.mp4"), {});
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].path, folder_.path() / "out" / "idx=0_rank=0_clip.mp4");
  EXPECT_EQ(files[0].prompt, "a blue butterfly");
  EXPECT_EQ(files[0].fps, 12);  // of the card
  EXPECT_EQ(files[0].frames, 5);
  formats::VideoReader reader(files[0].path);
  EXPECT_EQ(reader.info().height, 32);
  EXPECT_EQ(reader.info().width, 48);
  EXPECT_NEAR(reader.info().fps, 12, 1e-6);
  std::int64_t frames = 0;
  while (reader.next()) ++frames;
  EXPECT_EQ(frames, 5);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path() / "out"), fs::directory_iterator()), 1);
}

TEST_F(GenerateTest, WritesAPngForOneFrame) {
  GenerateOptions one = options("clip.mp4");
  one.num_video_frames = 1;
  const auto files = run(one, {});
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].path.filename(), "idx=0_rank=0_clip.png");
  EXPECT_EQ(formats::read_image(files[0].path).sizes(), (std::vector<std::int64_t>{32, 48, 3}));
}

TEST_F(GenerateTest, TheSameSeedGivesTheSameFileAndAnotherAnother) {
  GenerateOptions other = options("c.mp4");
  other.seed = 2;
  const std::string first = bytes_of(options("a.mp4"));
  EXPECT_EQ(first, bytes_of(options("b.mp4")));
  EXPECT_NE(first, bytes_of(other));
}

TEST_F(GenerateTest, PromptGuidanceNegativePromptSamplerAndFpsMatter) {
  const std::string first = bytes_of(options("a.mp4"));
  const auto changed = [&](auto change) {
    GenerateOptions other = options("b.mp4");
    change(other);
    return bytes_of(other);
  };
  EXPECT_NE(first, changed([](auto& o) { o.prompt = "a red moth"; }));
  EXPECT_NE(first, changed([](auto& o) { o.guidance = 0; }));
  EXPECT_NE(first, changed([](auto& o) { o.negative_prompt = "blurred"; }));
  EXPECT_NE(first, changed([](auto& o) { o.sampler = diffusion::Sampler::kDpmpp2m; }));
  EXPECT_NE(first, changed([](auto& o) { o.fps = 30; }));
  EXPECT_EQ(changed([](auto& o) { o.guidance = 0; }),
            changed([](auto& o) { o.guidance = 0, o.negative_prompt = "blurred"; }));
}

TEST_F(GenerateTest, MakesEachPromptOfAFile) {
  const fs::path prompts = folder_.path() / "prompts.txt";
  write_file_atomically(prompts, "a blue butterfly\n\n  a red moth \r\na blue butterfly\n");
  GenerateOptions many = options("clip.mp4");
  many.prompt = "";
  many.prompts_file = prompts;
  const auto files = run(many, {});
  ASSERT_EQ(files.size(), 3U);
  EXPECT_EQ(files[1].prompt, "a red moth");
  EXPECT_EQ(files[2].path.filename(), "idx=2_rank=0_clip.mp4");
  EXPECT_EQ(read_text_file(files[0].path), bytes_of(options("single.mp4")));  // prompt 0 is prompt 0 anywhere
  EXPECT_NE(read_text_file(files[0].path), read_text_file(files[2].path));    // other noise for the same words
  const std::vector<std::string> lines = report(files, *comm::World::solo());
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_TRUE(lines[2].starts_with(files[2].path.string() + ": 32x48, 5 frames at 12 fps, ")) << lines[2];
}

TEST_F(GenerateTest, TakesABareWeightFileWithTheBuiltinEncoders) {
  const fs::path bare = folder_.path() / "bare" / "model.pth";
  fs::create_directories(bare.parent_path());
  checkpoint::NamedTensors wrapped;
  for (auto& [name, tensor] : test::tiny_weights()) wrapped.emplace_back("module." + name, tensor);
  checkpoint::write_tensor_file(bare, wrapped);
  GenerateOptions from_bare = options("a.mp4");
  from_bare.checkpoint = bare;
  from_bare.fps = 12;
  EXPECT_EQ(bytes_of(from_bare), bytes_of(options("b.mp4")));
  from_bare.fps.reset();
  EXPECT_EQ(run(from_bare, {}).at(0).fps, 24);
}

TEST_F(GenerateTest, RefusesSizesBeforeItLoadsAnything) {
  GenerateOptions bad = options("a.mp4");
  bad.checkpoint = "/nowhere/model.pth";
  bad.height = 40;
  EXPECT_EQ(test::error_of([&] { run(bad, {}); }),
            "2 height: got 40, want a multiple of 16; hint: the nearest are 32 or 48");
}

TEST_F(GenerateTest, RefusesAModelThatDoesNotFitItsEncoders) {
  const auto error_with = [&](const models::DitConfig& config, const data::DatasetCard& card) {
    const fs::path other = folder_.path() / "other";
    fs::remove_all(other);
    test::write_iteration(other, 1, test::tiny_weights(config), card);
    GenerateOptions bad = options("a.mp4");
    bad.checkpoint = other;
    return test::error_of([&] { run(bad, {}); });
  };
  models::DitConfig config = test::tiny_config();
  config.crossattn_emb_size = 64;
  EXPECT_NE(error_with(config, {}).find("width 64, want 1024"), std::string::npos);
  config = test::tiny_config();
  config.in_channels = 8;
  EXPECT_NE(error_with(config, {}).find("8 latent channels, want 16"), std::string::npos);
  data::DatasetCard card;
  card.tokenizer = "/nowhere/tokenizer";
  const std::string message = error_with(test::tiny_config(), card);
  EXPECT_NE(message.find("/nowhere/tokenizer"), std::string::npos) << message;
  EXPECT_NE(message.find("--tokenizer takes another place)"), std::string::npos) << message;
}

TEST_F(GenerateTest, TheOptionsEncodersTakeThePlaceOfTheCheckpoints) {
  data::DatasetCard card;
  card.fps = 12;
  card.tokenizer = "/nowhere/tokenizer", card.text_encoder = "/nowhere/text";
  const fs::path other = folder_.path() / "other";
  test::write_iteration(other, 1, test::tiny_weights(), card);
  GenerateOptions own = options("a.mp4");
  own.checkpoint = other;
  own.tokenizer = "builtin", own.text_encoder = "builtin";
  EXPECT_EQ(bytes_of(own), bytes_of(options("b.mp4")));
  card.latent_channels = 8;
  test::write_iteration(other, 2, test::tiny_weights(), card);
  EXPECT_NE(test::error_of([&] { run(own, {}); }).find("tokenizer builtin: got 16 channels at 4x8x8, want 8 channels"),
            std::string::npos);
}

TEST_F(GenerateTest, RefusesATokenizerWithoutTheStatisticsOfTheCard) {
  data::DatasetCard card;  // without a version: statistics that the builtin tokenizer does not have
  card.fps = 12;
  card.latent_statistics_frames = 1;
  card.latent_mean.assign(16, 0.0), card.latent_std.assign(16, 1.0);
  const fs::path other = folder_.path() / "other";
  test::write_iteration(other, 1, test::tiny_weights(), card);
  GenerateOptions bad = options("a.mp4");
  bad.checkpoint = other;
  EXPECT_NE(test::error_of([&] { run(bad, {}); }).find("want latent statistics of 1 frames"), std::string::npos);
}

TEST_F(GenerateTest, NamesTheStepOfLatentsThatAreNotFiniteAndWritesNothing) {
  checkpoint::NamedTensors weights = test::tiny_weights();
  for (auto& [name, tensor] : weights) {
    if (name == "final_layer_linear.bias") tensor.fill_(std::numeric_limits<float>::quiet_NaN());
  }
  const fs::path broken = folder_.path() / "broken";
  test::write_iteration(broken, 1, weights, data::DatasetCard{});
  GenerateOptions bad = options("a.mp4");
  bad.checkpoint = broken;
  const std::string message = test::error_of([&] { run(bad, {}); });
  EXPECT_NE(message.find("3 latents of prompt 0: got values that are not finite after step 1 of 4"), std::string::npos)
      << message;
  EXPECT_TRUE(!fs::exists(folder_.path() / "out") || fs::is_empty(folder_.path() / "out"));
}

TEST_F(GenerateTest, RefusesAFileWithoutPromptsAndOneThatIsMissing) {
  GenerateOptions bad = options("a.mp4");
  bad.prompt = "";
  bad.prompts_file = folder_.path() / "prompts.txt";
  EXPECT_TRUE(test::error_of([&] { run(bad, {}); }).starts_with("3 "));
  write_file_atomically(bad.prompts_file, "\n  \n");
  EXPECT_NE(test::error_of([&] { run(bad, {}); }).find("got no prompt"), std::string::npos);
}

}  // namespace
}  // namespace dfm::generate
