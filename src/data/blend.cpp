#include "dfm/data/blend.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"
#include "dfm/base/philox.h"
#include "dfm/data/plan.h"

namespace dfm::data {
namespace {

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

}  // namespace

std::vector<std::int64_t> blend_slots(const std::vector<double>& weights) {
  double sum = 0;
  for (const double weight : weights) {
    if (!std::isfinite(weight) || weight <= 0) throw DataError("weight of a blend: got {}, want one above 0", weight);
    sum += weight;
  }
  std::vector<std::int64_t> slots;
  std::vector<double> remainders;
  for (const double weight : weights) {
    const double exact = weight / sum * static_cast<double>(kBlendPeriod);
    slots.push_back(static_cast<std::int64_t>(std::floor(exact)));
    remainders.push_back(exact - std::floor(exact));
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remainders[a] > remainders[b]; });
  const std::int64_t missing = kBlendPeriod - std::accumulate(slots.begin(), slots.end(), std::int64_t{0});
  for (std::int64_t i = 0; i < missing; ++i) ++slots[order[unsigned_of(i) % order.size()]];
  return slots;
}

BlendOrder::BlendOrder(std::vector<std::int64_t> slots) : slots_(std::move(slots)) {}

BlendDraw BlendOrder::at(std::uint64_t seed, std::uint64_t position) const {
  const std::uint64_t number = position / unsigned_of(kBlendPeriod), slot = position % unsigned_of(kBlendPeriod);
  const std::shared_ptr<const Period> found = period(seed, number);
  const std::size_t set = found->set[slot];
  return {.set = set, .number = number * unsigned_of(slots_[set]) + found->rank[slot]};
}

std::shared_ptr<const BlendOrder::Period> BlendOrder::period(std::uint64_t seed, std::uint64_t number) const {
  constexpr std::size_t kMostKept = 8;
  const std::lock_guard lock(mutex_);
  std::shared_ptr<const Period>& kept = periods_[{seed, number}];
  if (kept) return kept;
  std::vector<std::uint16_t> set_of_slot;
  for (std::size_t set = 0; set < slots_.size(); ++set) {
    set_of_slot.insert(set_of_slot.end(), unsigned_of(slots_[set]), static_cast<std::uint16_t>(set));
  }
  auto made = std::make_shared<Period>();
  std::vector<std::uint16_t> seen(slots_.size());
  for (std::uint64_t i = 0; i < unsigned_of(kBlendPeriod); ++i) {
    const std::uint64_t slot = philox_permute(seed, number, unsigned_of(kBlendPeriod), i, Purpose::kBlend);
    const std::uint16_t set = set_of_slot.at(slot);
    made->set.push_back(set);
    made->rank.push_back(seen[set]++);
  }
  kept = made;
  if (periods_.size() > kMostKept) {
    // A run goes upwards: the lowest is the one least wanted, unless it was just made.
    auto lowest = periods_.begin();
    if (lowest->second == made) ++lowest;
    periods_.erase(lowest);
  }
  return made;
}

namespace {

// The card of all: what the sets agree in, and sums. `fps` is the most common of all clips.
DatasetCard common_card(const std::vector<BlendPart>& parts) {
  DatasetCard card = parts.front().dataset->card();
  if (card.text_encoder == "unknown") {  // another set may know it
    for (const BlendPart& part : parts) {
      if (part.dataset->card().text_encoder != "unknown") card.text_encoder = part.dataset->card().text_encoder;
    }
  }
  card.num_samples = card.num_images = card.num_clips = card.num_without_caption = card.num_skipped = 0;
  card.source.clear();
  std::map<double, std::int64_t> clips_at;
  for (const BlendPart& part : parts) {
    const DatasetCard& one = part.dataset->card();
    const std::string conflict = encoder_conflict(one, parts.front().dataset->card());
    if (!conflict.empty()) {
      throw DataError("data set {}: got {} of data set {}; hint: sets of a blend need the same encoders", part.name,
                      conflict, parts.front().name);
    }
    for (const SampleEntry& entry : part.dataset->entries()) {
      ++(entry.frames > 1 ? card.num_clips : card.num_images);
      if (entry.frames > 1 && entry.fps > 0) ++clips_at[entry.fps];
    }
    card.num_without_caption += one.num_without_caption;
    card.num_skipped += one.num_skipped;
    card.source += (card.source.empty() ? "" : ", ") + one.source;
    std::erase_if(card.settings, [&](const auto& setting) {
      const auto found = one.settings.find(setting.first);
      return found == one.settings.end() || found->second != setting.second;
    });
  }
  card.num_samples = card.num_images + card.num_clips;
  card.fps = 0;
  std::int64_t most = 0;
  for (const auto& [fps, count] : clips_at) {
    if (count > most) most = count, card.fps = fps;
  }
  return card;
}

class Blend : public Dataset {
 public:
  Blend(std::vector<BlendPart> parts, const std::filesystem::path& folder)
      : parts_(std::move(parts)), folder_(folder), card_(common_card(parts_)) {
    for (const BlendPart& part : parts_) {
      first_.push_back(entries_.size());
      for (SampleEntry entry : part.dataset->entries()) {
        entry.key = part.name + "/" + entry.key;
        entries_.push_back(std::move(entry));
      }
    }
  }

  [[nodiscard]] const std::filesystem::path& folder() const override { return folder_; }
  [[nodiscard]] const std::vector<SampleEntry>& entries() const override { return entries_; }
  [[nodiscard]] const DatasetCard& card() const override { return card_; }
  [[nodiscard]] std::uint64_t fingerprint() const override { return fingerprint_; }

  [[nodiscard]] Sample read(std::size_t index) const override {
    const auto after = std::upper_bound(first_.begin(), first_.end(), index);
    const auto set = static_cast<std::size_t>(after - first_.begin()) - 1;
    Sample sample = parts_[set].dataset->read(index - first_[set]);
    if (!sample.problem.empty()) sample.problem = parts_[set].name + ": " + sample.problem;
    return sample;
  }

 protected:
  [[nodiscard]] std::uint64_t size_of(std::size_t set) const { return parts_[set].dataset->entries().size(); }

  void hash_in(const std::string& text) { fingerprint_ = fnv1a64(text, fingerprint_); }

  std::vector<BlendPart> parts_;
  std::vector<std::size_t> first_;  // index of each set's first entry

 private:
  std::filesystem::path folder_;
  DatasetCard card_;
  std::vector<SampleEntry> entries_;
  std::uint64_t fingerprint_ = fnv1a64("");
};

std::vector<std::int64_t> slots_of(const std::vector<BlendPart>& parts) {
  std::vector<double> weights;
  for (const BlendPart& part : parts) weights.push_back(part.share);
  std::vector<std::int64_t> slots = blend_slots(weights);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] > 0) continue;
    throw DataError("data set {}: got the part {:.3g} of a blend, want at least about 1/{}", parts[i].name,
                    weights[i] / sum, kBlendPeriod);
  }
  return slots;
}

class WeightedBlend : public Blend {
 public:
  WeightedBlend(std::vector<BlendPart> parts, const std::filesystem::path& folder)
      : Blend(std::move(parts), folder), slots_(slots_of(parts_)), order_(slots_) {
    hash_in("weighted;");
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      hash_in(fmt::format("{}:{:016x};", slots_[i], parts_[i].dataset->fingerprint()));
    }
  }
  [[nodiscard]] std::size_t index_at(std::uint64_t seed, std::uint64_t position) const override {
    const BlendDraw draw = order_.at(seed, position);
    return first_[draw.set] + parts_[draw.set].dataset->index_at(seed, draw.number);
  }
  [[nodiscard]] std::string description() const override {
    std::string text = fmt::format("blend of {} data sets", parts_.size());
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      text += fmt::format("{} {} {:.4g}%", i == 0 ? ":" : ",", parts_[i].name,
                          100 * static_cast<double>(slots_[i]) / static_cast<double>(kBlendPeriod));
    }
    return text;
  }

 private:
  std::vector<std::int64_t> slots_;
  BlendOrder order_;
};

class EpochizedBlend : public Blend {
 public:
  EpochizedBlend(std::vector<BlendPart> parts, const std::filesystem::path& folder) : Blend(std::move(parts), folder) {
    hash_in("epochized;");
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const double exact = parts_[i].share * static_cast<double>(size_of(i));
      constexpr double kMost = 1e15;  // beyond it, sums are not exact
      if (exact > kMost)
        throw DataError("data set {}: got {} repetitions, want fewer", parts_[i].name, parts_[i].share);
      const auto count = static_cast<std::uint64_t>(std::llround(exact));
      if (count == 0) {
        throw DataError("data set {}: got {} repetitions of {} samples, want at least one sample", parts_[i].name,
                        parts_[i].share, size_of(i));
      }
      ends_.push_back((ends_.empty() ? 0 : ends_.back()) + count);
      hash_in(fmt::format("{}:{:016x};", count, parts_[i].dataset->fingerprint()));
    }
  }
  [[nodiscard]] std::size_t index_at(std::uint64_t seed, std::uint64_t position) const override {
    const std::uint64_t drawn = sample_at(seed, position, ends_.back());
    const auto set = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), drawn) - ends_.begin());
    const std::uint64_t first = set == 0 ? 0 : ends_[set - 1], size = size_of(set);
    const std::uint64_t number = drawn - first, whole = (ends_[set] - first) / size * size;
    if (number < whole) return first_[set] + number % size;
    return first_[set] + philox_permute(seed, position / ends_.back(), size, number - whole, Purpose::kBlend);
  }
  [[nodiscard]] std::string description() const override {
    std::string text = fmt::format("epochs of {} data sets", parts_.size());
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      text += fmt::format("{} {} x {:.4g}", i == 0 ? ":" : ",", parts_[i].name, parts_[i].share);
    }
    return text;
  }

 private:
  std::vector<std::uint64_t> ends_;  // of each set's part of the union
};

// The shortest ends of the folders that tell all apart.
void name_parts(std::vector<BlendPart>& parts) {
  const auto ending = [](const std::filesystem::path& path, std::size_t length) {
    std::filesystem::path result;
    for (auto it = path.end(); it != path.begin() && length > 0; --length) result = *--it / result;
    std::string text = result.generic_string();
    while (text.size() > 1 && text.ends_with('/')) text.pop_back();
    return text;
  };
  constexpr std::size_t kLongest = 64;
  for (std::size_t length = 1; length <= kLongest; ++length) {
    std::set<std::string> names;
    for (BlendPart& part : parts) {
      part.name = ending(part.dataset->folder(), length);
      if (const std::string split = part.dataset->split(); split != "train") part.name += ":" + split;
      names.insert(part.name);
    }
    if (names.size() == parts.size()) return;
  }
}

}  // namespace

std::shared_ptr<Dataset> make_blend(std::vector<BlendPart> parts, BlendMode mode, const std::filesystem::path& folder) {
  if (parts.empty()) throw InternalError("blend {}: got no data set, want at least one", folder.string());
  if (std::all_of(parts.begin(), parts.end(), [](const BlendPart& part) { return part.name.empty(); }))
    name_parts(parts);
  if (mode == BlendMode::kEpochized) return std::make_shared<EpochizedBlend>(std::move(parts), folder);
  return std::make_shared<WeightedBlend>(std::move(parts), folder);
}

}  // namespace dfm::data
