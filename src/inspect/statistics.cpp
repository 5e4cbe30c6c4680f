#include "inspect/statistics.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "dfm/data/plan.h"

namespace dfm::inspect {
namespace {

constexpr std::size_t kMostSizes = 20, kMostCaptions = 5;
constexpr std::int64_t kPatch = 2;           // of the DiT, over height and width
constexpr std::int64_t kStep = 128;          // samples of a step: train.global_batch_size of dit_xl
constexpr std::int64_t kMostPlanned = 8192;  // samples that the estimate of packing looks at
constexpr std::uint64_t kSeed = 1234;

Facts numbers(const at::Tensor& values_C) {
  Facts list = Facts::array();
  for (std::int64_t c = 0; c < values_C.size(0); ++c) list.push_back(values_C[c].item<double>());
  return list;
}

}  // namespace

void Statistics::add_size(const Size& size) {
  ++num_of_size_[{size.frames, size.height, size.width, size.channels}];
  tokens_.push_back(size.frames * (size.height / kPatch) * (size.width / kPatch));
  text_lengths_.push_back(size.text_length);
  if (size.frames > 1) ++num_clips_;
}

void Statistics::add_content(const at::Tensor& latent_CTHW, const std::string& caption) {
  ++num_read_;
  captions_.push_back(caption);
  const at::Tensor values_CN = latent_CTHW.to(at::kDouble).flatten(1);
  const double low = values_CN.min().item<double>(), high = values_CN.max().item<double>();
  if (!std::isfinite(low) || !std::isfinite(high)) {
    ++num_bad_;
    return;
  }
  if (sum_C_.defined() && sum_C_.size(0) != values_CN.size(0)) {
    ++num_bad_;
    return;
  }
  const at::Tensor sum_C = values_CN.sum(1), sum_of_squares_C = values_CN.square().sum(1);
  sum_C_ = sum_C_.defined() ? sum_C_ + sum_C : sum_C;
  sum_of_squares_C_ = sum_of_squares_C_.defined() ? sum_of_squares_C_ + sum_of_squares_C : sum_of_squares_C;
  min_ = count_ == 0 ? low : std::min(min_, low);
  max_ = count_ == 0 ? high : std::max(max_, high);
  count_ += static_cast<double>(values_CN.size(1));
}

void Statistics::report(Facts& facts, std::int64_t task_encoder_seq_length) const {
  facts["num_samples"] = num_samples();
  facts["num_images"] = num_samples() - num_clips_;
  facts["num_clips"] = num_clips_;
  if (num_samples() == 0) return;
  report_sizes(facts);
  report_captions(facts);
  report_latents(facts);
  report_packing(facts, task_encoder_seq_length);
}

void Statistics::report_sizes(Facts& facts) const {
  std::vector<std::pair<std::int64_t, Facts>> rows;
  for (const auto& [size, count] : num_of_size_) {
    const auto& [frames, height, width, channels] = size;
    rows.emplace_back(count, Facts{{"frames", 1 + (frames - 1) * card_.temporal_compression},
                                   {"height", height * card_.spatial_compression},
                                   {"width", width * card_.spatial_compression},
                                   {"shape", {channels, frames, height, width}},
                                   {"tokens", frames * (height / kPatch) * (width / kPatch)},
                                   {"samples", count}});
  }
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  facts["num_sizes"] = rows.size();
  Facts table = Facts::array();
  for (std::size_t i = 0; i < std::min(rows.size(), kMostSizes); ++i) table.push_back(std::move(rows[i].second));
  facts["sizes"] = std::move(table);
}

void Statistics::report_captions(Facts& facts) const {
  Facts& text = facts["text_rows"] = describe_spread(text_lengths_);
  text["mean"] = static_cast<double>(std::accumulate(text_lengths_.begin(), text_lengths_.end(), std::int64_t{0})) /
                 static_cast<double>(text_lengths_.size());
  if (captions_.empty()) return;
  std::vector<std::int64_t> lengths;
  std::int64_t num_empty = 0;
  std::vector<std::string> examples;
  for (const std::string& caption : captions_) {
    lengths.push_back(static_cast<std::int64_t>(caption.size()));
    if (caption.empty()) ++num_empty;
    const std::string line = one_line(caption, 160);
    if (!caption.empty() && examples.size() < kMostCaptions &&
        std::find(examples.begin(), examples.end(), line) == examples.end()) {
      examples.push_back(line);
    }
  }
  Facts spread = describe_spread(lengths);
  facts["captions"] = {{"samples_read", captions_.size()}, {"without_caption", num_empty},
                       {"length_min", spread["min"]},      {"length_median", spread["median"]},
                       {"length_max", spread["max"]},      {"examples", examples}};
}

void Statistics::report_latents(Facts& facts) const {
  Facts latents{{"samples_read", num_read_}, {"bad", num_bad_}};
  if (count_ > 0) {
    const at::Tensor mean_C = sum_C_ / count_;
    const at::Tensor std_C = (sum_of_squares_C_ / count_ - mean_C.square()).clamp_min(0).sqrt();
    const double mean = mean_C.mean().item<double>();
    latents["mean"] = mean;
    latents["std"] = std::sqrt(std::max(0.0, sum_of_squares_C_.mean().item<double>() / count_ - mean * mean));
    latents["min"] = min_;
    latents["max"] = max_;
    latents["channel_mean"] = numbers(mean_C);
    latents["channel_std"] = numbers(std_C);
  }
  facts["latents"] = std::move(latents);
}

// How full rows would be: steps of the training stream, packed as train packs them on one rank.
void Statistics::report_packing(Facts& facts, std::int64_t task_encoder_seq_length) const {
  Facts& tokens = facts["tokens"] = describe_spread(tokens_);
  const std::int64_t total = std::accumulate(tokens_.begin(), tokens_.end(), std::int64_t{0});
  tokens["all_samples"] = total;
  std::vector<std::int64_t> fitting;
  for (const std::int64_t length : tokens_) {
    if (length > 0 && length <= task_encoder_seq_length) fitting.push_back(length);
  }
  Facts packing{{"task_encoder_seq_length", task_encoder_seq_length},
                {"samples_too_long", num_samples() - static_cast<std::int64_t>(fitting.size())}};
  if (!fitting.empty()) {
    const data::PackLimits limits{.max_tokens = task_encoder_seq_length};
    const std::int64_t planned = std::min(kMostPlanned, std::max(kStep, static_cast<std::int64_t>(fitting.size())));
    std::int64_t num_rows = 0, num_tokens = 0, num_padded = 0;
    for (std::int64_t first = 0; first < planned; first += kStep) {
      std::vector<std::int64_t> lengths;
      for (std::int64_t i = first; i < std::min(first + kStep, planned); ++i) {
        lengths.push_back(fitting[data::sample_at(kSeed, static_cast<std::uint64_t>(i), fitting.size())]);
      }
      for (const data::Row& row : data::pack_rows(lengths, limits)) {
        ++num_rows;
        num_tokens += row.num_tokens;
        num_padded += row.padded_tokens;
      }
    }
    packing["samples_a_step"] = kStep;
    packing["samples_a_row"] = static_cast<double>(planned) / static_cast<double>(num_rows);
    packing["tokens_a_row"] = static_cast<double>(num_tokens) / static_cast<double>(num_rows);
    packing["efficiency"] = static_cast<double>(num_tokens) / static_cast<double>(num_padded);
  }
  facts["packing"] = std::move(packing);
}

}  // namespace dfm::inspect
