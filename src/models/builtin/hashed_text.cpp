#include "models/builtin/hashed_text.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "dfm/base/hash.h"
#include "dfm/base/philox.h"
#include "dfm/text/words.h"

namespace dfm::models {
namespace {

constexpr std::uint64_t kSeed = 0;        // the encoder is the same in every run
constexpr const char* kEndMark = "</s>";  // no word: words hold letters and digits only

}  // namespace

std::vector<at::Tensor> HashedTextEncoder::encode(const std::vector<std::string>& captions) const {
  std::vector<at::Tensor> result;
  std::vector<float> of_pair(static_cast<std::size_t>(width()));
  for (const std::string& caption : captions) {
    std::vector<std::string> words = text::split_words(caption);
    words.resize(std::min(words.size(), static_cast<std::size_t>(max_length() - 1)));
    words.emplace_back(kEndMark);
    const at::Tensor rows = at::empty({static_cast<std::int64_t>(words.size()), width()}, at::kFloat);
    std::span<float> row(rows.mutable_data_ptr<float>(), of_pair.size());
    std::string before;
    for (const std::string& word : words) {
      philox_normal(kSeed, fnv1a64(word), Purpose::kText, 0, row);
      philox_normal(kSeed, fnv1a64(before + ' ' + word), Purpose::kText, 0, of_pair);
      for (std::size_t i = 0; i < row.size(); ++i) row[i] = (row[i] + of_pair[i]) * std::sqrt(0.5F);
      row = {row.data() + row.size(), row.size()};
      before = word;
    }
    result.push_back(rows.to(device_));
  }
  return result;
}

}  // namespace dfm::models
