#include "dfm/generate/options.h"

#include <fmt/format.h>

#include "generate/frames.h"

namespace dfm::generate {
namespace {

constexpr std::int64_t kSideMultiple = 16;
constexpr std::int64_t kTemporalCompression = 4;  // every tokenizer's is a multiple; run() checks the one it loads

void check_side(const char* option, std::int64_t value, config::Problems& problems) {
  if (value <= 0 || value % kSideMultiple == 0) return;
  const std::int64_t below = value / kSideMultiple * kSideMultiple;
  const std::string nearest =
      below == 0 ? fmt::format("{}", kSideMultiple) : fmt::format("{} or {}", below, below + kSideMultiple);
  problems.push_back({option, fmt::format("{}", value), fmt::format("a multiple of {}", kSideMultiple),
                      fmt::format("the nearest are {}", nearest)});
}

}  // namespace

void GenerateOptions::check(config::Problems& problems) const {
  check_side("height", height, problems);
  check_side("width", width, problems);
  if (num_video_frames > 0 && (num_video_frames - 1) % kTemporalCompression != 0) {
    problems.push_back({"num_video_frames", fmt::format("{}", num_video_frames),
                        fmt::format("1 + {} n", kTemporalCompression),
                        nearest_frames_hint(num_video_frames, kTemporalCompression)});
  }
  if (prompt.empty() && prompts_file.empty()) {
    problems.push_back({"prompt", "nothing", "a prompt, or a file of them", "--prompt \"a blue butterfly\""});
  }
  if (!prompt.empty() && !prompts_file.empty()) {
    problems.push_back({"prompt", "both a prompt and a prompts_file", "one of them", ""});
  }
  if (guidance_parallel == GuidanceParallel::kOn && guidance == 0) {
    problems.push_back({"guidance_parallel", "on with a guidance of 0", "auto or off",
                        "without guidance there is one branch to compute"});
  }
  const std::string extension = video_save_path.extension().string();
  const bool is_picture = extension == ".png";
  if (video_save_path.filename().empty() || (extension != ".mp4" && !is_picture && !extension.empty()) ||
      (is_picture && num_video_frames > 1)) {
    problems.push_back({"video_save_path", video_save_path.string(), "DIR/NAME.mp4",
                        is_picture ? "a PNG holds one frame: --num-video-frames 1" : ""});
  }
}

}  // namespace dfm::generate
