#include <fmt/format.h>

#include <csignal>

#include "dfm/base/progress.h"
#include "dfm/prepare/prepare.h"

namespace dfm::prepare {
namespace {

constexpr std::size_t kMostSkippedLines = 50;

std::string counted(std::int64_t count, const char* singular, const char* plural) {
  return fmt::format("{} {}", count, count == 1 ? singular : plural);
}

std::string rate_text(double rate) { return fmt::format("{:.{}f}/s", rate, rate < 10 ? 2 : 0); }

// "1234567" -> "1.23 million"
std::string large(std::int64_t count) {
  return count < 1000000 ? fmt::to_string(count) : fmt::format("{:.2f} million", static_cast<double>(count) / 1e6);
}

std::string describe_stopped(const Report& report) {
  return fmt::format("stopped by {}: {} in {} of {} are kept; the same command continues\n",
                     report.stopped_by == SIGINT ? "SIGINT" : "SIGTERM",
                     counted(report.num_samples, "sample", "samples"),
                     counted(report.num_shards, "complete shard", "complete shards"), report.folder.string());
}

std::string describe_encoding(const Report& report) {
  const double seconds = report.seconds - report.loading_seconds;
  const auto rate = [&](std::int64_t count) {
    return rate_text(seconds > 0 ? static_cast<double>(count) / seconds : 0);
  };
  const std::int64_t num_new = report.num_samples - report.num_continued;
  std::string text = fmt::format(
      "prepared {} in {} ({:.{}f} samples/s", counted(num_new, "sample", "samples"), format_duration(report.seconds),
      seconds > 0 ? static_cast<double>(num_new) / seconds : 0, static_cast<double>(num_new) < 10 * seconds ? 2 : 0);
  if (report.loading_seconds >= 1) {
    text += fmt::format(" after {} of loading the encoders", format_duration(report.loading_seconds));
  }
  text += ")\n";
  text += fmt::format("  encoded    {} ({}), {} ({}; {} text tokens)\n",
                      counted(report.num_frames_encoded, "picture or frame", "pictures and frames"),
                      rate(report.num_frames_encoded),
                      counted(report.num_captions_encoded, "different caption", "different captions"),
                      rate(report.num_captions_encoded), large(report.num_text_tokens));
  if (report.num_continued > 0) {
    text += fmt::format("  continued  {} were there from a stopped run\n",
                        counted(report.num_continued, "sample", "samples"));
  }
  return text;
}

}  // namespace

std::string describe(const Report& report) {
  if (report.stopped_by != 0) return describe_stopped(report);
  std::string text = report.already_complete ? fmt::format("nothing to do: {} is complete\n", report.folder.string())
                                             : describe_encoding(report);
  text += fmt::format("  input      {}\n", report.source);
  text += fmt::format("  data set   {}: {} ({}, {}), {} in {}\n", report.folder.string(),
                      counted(report.num_samples, "sample", "samples"),
                      counted(report.num_images, "picture", "pictures"), counted(report.num_clips, "clip", "clips"),
                      format_bytes(report.num_bytes), counted(report.num_shards, "shard", "shards"));
  if (report.num_latent_tokens > 0) {
    text += fmt::format("  tokens     {} for the DiT, with its patches of 1x2x2\n", large(report.num_latent_tokens));
  }
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
