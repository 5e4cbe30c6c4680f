// Looks at what the demo's model made: puts frames of every clip on one page and checks the colours that were asked
// for.
//   dfm_demo --prompts prompts.txt --clips demo/colours.mp4 --sheet sheet.png
// reads demo/idx=0_rank=0_colours.mp4 for the first line of prompts.txt, and so on. Exit code 1: too few colours are
// right.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/data/butterfly_colours.h"
#include "dfm/formats/contact_sheet.h"
#include "dfm/formats/media.h"

namespace dfm::demo {
namespace {

struct Options {
  std::filesystem::path prompts, clips, sheet;
  std::int64_t frames = 5;  // a clip, on the page
  std::int64_t side = 192;  // pixels of a frame on the page
  std::size_t want = 5;     // clips of the colour that was asked for
};

// The lines of the file, as `dfm generate --prompts-file` numbers them: blank ones do not count.
std::vector<std::string> read_prompts(const std::filesystem::path& path) {
  std::istringstream lines(read_text_file(path));
  std::vector<std::string> prompts;
  for (std::string line; std::getline(lines, line);)
    if (line.find_first_not_of(" \t\r") != std::string::npos) prompts.push_back(line);
  return prompts;
}

std::filesystem::path clip_path(const std::filesystem::path& clips, std::size_t index) {
  return clips.parent_path() / fmt::format("idx={}_rank=0_{}", index, clips.filename().string());
}

at::Tensor read_clip(const std::filesystem::path& path) {
  formats::VideoReader reader(path);
  std::vector<at::Tensor> frames_HW3;
  while (auto frame = reader.next()) frames_HW3.push_back(frame->rgb_HW3);
  if (frames_HW3.empty()) throw DataError("clip {}: got no frame, want at least one", path.string());
  return at::stack(frames_HW3);
}

// The colour of the butterfly, not one of the background ("over green leaves").
std::string_view asked_colour(const std::string& prompt) {
  for (const auto& colour : data::kButterflyColours) {
    if ((" " + prompt).find(fmt::format(" {} butterfly", colour.name)) != std::string::npos) return colour.name;
  }
  return {};
}

// `count` frames, first and last among them, enlarged to the page's size.
void add_frames(std::vector<at::Tensor>& page, const at::Tensor& rgb_THW3, const Options& options) {
  const auto last = rgb_THW3.size(0) - 1;
  const auto height = options.side * rgb_THW3.size(1) / rgb_THW3.size(2);
  for (std::int64_t i = 0; i < options.frames; ++i) {
    const auto t = options.frames == 1 ? 0 : last * i / (options.frames - 1);
    page.push_back(formats::resize_rgb(rgb_THW3[t], height, options.side));
  }
}

int run(const Options& options) {
  const auto prompts = read_prompts(options.prompts);
  if (prompts.empty()) throw DataError("prompts {}: got none, want a prompt a line", options.prompts.string());
  std::vector<at::Tensor> page;
  std::size_t right = 0;
  fmt::print("{:<64}  {:<8}  {}\n", "prompt", "asked", "seen");
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto rgb_THW3 = read_clip(clip_path(options.clips, i));
    const auto seen = data::dominant_butterfly_colour(rgb_THW3);
    const auto asked = asked_colour(prompts[i]);
    if (!asked.empty() && seen == asked) ++right;
    fmt::print("{:<64}  {:<8}  {}\n", prompts[i], asked, seen.empty() ? "no colour" : seen);
    add_frames(page, rgb_THW3, options);
  }
  formats::write_png(options.sheet, formats::contact_sheet(page, options.frames, 6));
  const bool good = right >= options.want;
  fmt::print("{} of {} clips have the colour that was asked for{}\n", right, prompts.size(),
             good ? "" : fmt::format("; want at least {}", options.want));
  return good ? 0 : 1;
}

}  // namespace
}  // namespace dfm::demo

int main(int argc, char** argv) {
  dfm::demo::Options options;
  CLI::App app("Frames of the demo's clips on one page, and a check of their colours", "dfm_demo");
  app.add_option("--prompts", options.prompts, "File with a prompt a line")->required();
  app.add_option("--clips", options.clips, "DIR/NAME.mp4, as given to dfm generate --video-save-path")->required();
  app.add_option("--sheet", options.sheet, "PNG to write")->required();
  app.add_option("--frames", options.frames, "Frames a clip on the page")->check(CLI::PositiveNumber);
  app.add_option("--want", options.want, "Least number of clips with the right colour");
  CLI11_PARSE(app, argc, argv);
  try {
    return dfm::demo::run(options);
  } catch (const dfm::Error& error) {
    fmt::print(stderr, "dfm_demo: error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
}
