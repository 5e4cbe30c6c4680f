#pragma once
// Several data sets as one. docs/numerics.md says in which order their samples come.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dfm/data/dataset.h"

namespace dfm::data {

// Positions of the stream in which a weighted blend gives each set its exact number of slots.
inline constexpr std::int64_t kBlendPeriod = 4096;

// Slots of kBlendPeriod for each weight: the whole part of weight / sum * kBlendPeriod, and one more for those with
// the largest remainders (equal ones: the first) until the sum is kBlendPeriod. Weights are finite and above 0.
std::vector<std::int64_t> blend_slots(const std::vector<double>& weights);

struct BlendDraw {
  std::size_t set = 0;
  std::uint64_t number = 0;  // samples of this set at earlier positions: its own position in its own stream
};

// Which set a position of a weighted blend belongs to. Thread safe; keeps the periods that were asked for last.
class BlendOrder {
 public:
  explicit BlendOrder(std::vector<std::int64_t> slots);
  [[nodiscard]] BlendDraw at(std::uint64_t seed, std::uint64_t position) const;

 private:
  struct Period {
    std::vector<std::uint16_t> set, rank;  // of each position: its set, and that set's earlier positions in the period
  };
  std::shared_ptr<const Period> period(std::uint64_t seed, std::uint64_t number) const;

  std::vector<std::int64_t> slots_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<std::uint64_t, std::uint64_t>, std::shared_ptr<const Period>> periods_;
};

struct BlendPart {
  std::shared_ptr<Dataset> dataset;
  double share = 1;
  std::string name;  // in messages and before the keys
};

// kWeighted: shares are weights, each set goes through epochs of its own. kEpochized: shares are repetitions, and an
// epoch is one permutation of all samples, each as often as its set is repeated; of a fraction each epoch draws anew.
enum class BlendMode { kWeighted, kEpochized };

// Keys of the entries are NAME/KEY. DataError: encoders of the sets that do not agree; a set without a slot.
std::shared_ptr<Dataset> make_blend(std::vector<BlendPart> parts, BlendMode mode, const std::filesystem::path& folder);

}  // namespace dfm::data
