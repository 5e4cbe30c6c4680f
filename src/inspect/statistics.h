#pragma once
// What can be counted over the samples of a data set.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "dfm/data/card.h"
#include "inspect/facts.h"

namespace dfm::inspect {

class Statistics {
 public:
  explicit Statistics(const data::DatasetCard& card) : card_(card) {}

  // Sizes in latent cells; `text_length` in rows.
  struct Size {
    std::int64_t channels = 0, frames = 0, height = 0, width = 0, text_length = 0;
  };
  void add_size(const Size& size);
  // Of some samples only: those that were read.
  void add_content(const at::Tensor& latent_CTHW, const std::string& caption);
  void add_bad() { ++num_bad_; }

  [[nodiscard]] std::int64_t num_samples() const { return static_cast<std::int64_t>(tokens_.size()); }
  // Counts, sizes, captions, text, latents, tokens and packing.
  void report(Facts& facts, std::int64_t task_encoder_seq_length) const;

 private:
  void report_sizes(Facts& facts) const;
  void report_captions(Facts& facts) const;
  void report_latents(Facts& facts) const;
  void report_packing(Facts& facts, std::int64_t task_encoder_seq_length) const;

  data::DatasetCard card_;
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>, std::int64_t> num_of_size_;
  std::vector<std::int64_t> tokens_, text_lengths_;
  std::vector<std::string> captions_;
  std::int64_t num_bad_ = 0, num_read_ = 0, num_clips_ = 0;
  at::Tensor sum_C_, sum_of_squares_C_;
  double count_ = 0, min_ = 0, max_ = 0;  // values a channel
};

}  // namespace dfm::inspect
