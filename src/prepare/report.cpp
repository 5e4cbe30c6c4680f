#include <fmt/format.h>
#include "dfm/base/progress.h"
#include "dfm/prepare/prepare.h"

namespace dfm::prepare {
namespace {

constexpr std::size_t kMostSkippedLines = 50;

std::string counted(std::int64_t count, const char* singular, const char* plural) {
  return fmt::format("{} {}", count, count == 1 ? singular : plural);
}

}  // namespace

std::string describe(const Report& report) {
  const std::int64_t num_new = report.num_samples - report.num_continued;
  std::string text;
  if (report.already_complete) {
    text += fmt::format("nothing to do: {} is complete\n", report.folder.string());
  } else {
    const double rate = report.seconds > 0 ? static_cast<double>(num_new) / report.seconds : 0;
    text += fmt::format("prepared {} in {} ({:.{}f} samples/s)\n", counted(num_new, "sample", "samples"),
                        format_duration(report.seconds), rate, rate < 10 ? 2 : 0);
    if (report.num_continued > 0) {
      text += fmt::format("  continued  {} were there from a stopped run\n",
                          counted(report.num_continued, "sample", "samples"));
    }
  }
  text += fmt::format("  input      {}\n", report.source);
  text += fmt::format("  data set   {}: {} ({}, {}), {} in {}\n", report.folder.string(),
                      counted(report.num_samples, "sample", "samples"),
                      counted(report.num_images, "picture", "pictures"), counted(report.num_clips, "clip", "clips"),
                      format_bytes(report.num_bytes), counted(report.num_shards, "shard", "shards"));
  if (report.num_without_caption > 0) {
    text += fmt::format("  captions   {} without one: the empty text stands for it\n",
                        counted(report.num_without_caption, "sample", "samples"));
  }
  if (!report.skipped.empty()) {
    text +=
        fmt::format("  skipped    {}\n", counted(static_cast<std::int64_t>(report.skipped.size()), "file", "files"));
    for (std::size_t i = 0; i < report.skipped.size() && i < kMostSkippedLines; ++i) {
      const auto& [name, reason] = report.skipped[i];
      const bool is_named = reason.find(name) != std::string::npos;
      text += fmt::format("             {}{}{}\n", is_named ? "" : name, is_named ? "" : ": ", reason);
    }
    if (report.skipped.size() > kMostSkippedLines) {
      text += fmt::format("             and {} more\n", report.skipped.size() - kMostSkippedLines);
    }
  }
  text += fmt::format("  next       dfm train --dataset-path {}\n", report.folder.string());
  return text;
}

}  // namespace dfm::prepare
