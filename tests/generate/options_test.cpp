#include "dfm/generate/options.h"

#include <gtest/gtest.h>

namespace dfm::generate {
namespace {

GenerateOptions good() {
  GenerateOptions options;
  options.prompt = "a butterfly";
  return options;
}

// The problems of `change` applied to good options, as "option: got, want; hint" lines.
template <typename Change>
std::string problems_of(Change change) {
  GenerateOptions options = good();
  change(options);
  config::Problems problems;
  options.check(problems);
  std::string text;
  for (const config::Problem& p : problems) text += p.option + ": " + p.got + ", " + p.want + "; " + p.hint + "\n";
  return text;
}

TEST(GenerateOptions, DefaultsAndTheTutorialsValuesAreFine) {
  EXPECT_EQ(problems_of([](auto&) {}), "");
  EXPECT_EQ(problems_of([](auto& o) { o.num_video_frames = 1, o.video_save_path = "a/b.png"; }), "");
  EXPECT_EQ(problems_of([](auto& o) { o.video_save_path = "name"; }), "");
}

TEST(GenerateOptions, RefusesSizesAndFramesAndNamesTheNearest) {
  EXPECT_EQ(problems_of([](auto& o) { o.height = 700, o.width = 10; }),
            "height: 700, a multiple of 16; the nearest are 688 or 704\n"
            "width: 10, a multiple of 16; the nearest are 16\n");
  EXPECT_EQ(problems_of([](auto& o) { o.num_video_frames = 120; }),
            "num_video_frames: 120, 1 + 4 n; the nearest are 117 and 121\n");
}

TEST(GenerateOptions, WantsOnePromptOrAFile) {
  EXPECT_NE(problems_of([](auto& o) { o.prompt = ""; }).find("prompt: nothing"), std::string::npos);
  EXPECT_NE(problems_of([](auto& o) { o.prompts_file = "p.txt"; }).find("both"), std::string::npos);
  EXPECT_EQ(problems_of([](auto& o) { o.prompt = "", o.prompts_file = "p.txt"; }), "");
}

TEST(GenerateOptions, RefusesToShareTheBranchesOfNoGuidance) {
  const auto problems = problems_of([](auto& o) { o.guidance_parallel = GuidanceParallel::kOn, o.guidance = 0; });
  EXPECT_NE(problems.find("guidance_parallel: on with a guidance of 0"), std::string::npos);
}

TEST(GenerateOptions, RefusesOddFileNames) {
  EXPECT_NE(problems_of([](auto& o) { o.video_save_path = "a.gif"; }).find("video_save_path: a.gif"),
            std::string::npos);
  EXPECT_NE(problems_of([](auto& o) { o.video_save_path = "a.png"; }).find("--num-video-frames 1"), std::string::npos);
  EXPECT_NE(problems_of([](auto& o) { o.video_save_path = "out/"; }).find("video_save_path"), std::string::npos);
}

}  // namespace
}  // namespace dfm::generate
