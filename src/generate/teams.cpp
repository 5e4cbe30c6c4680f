#include "generate/teams.h"

#include <algorithm>
#include <string>

#include "dfm/base/error.h"

namespace dfm::generate {
namespace {

// "1, 2 or 4"
std::string divisors_of(int number) {
  std::vector<int> divisors;
  for (int i = 1; i <= number; ++i) {
    if (number % i == 0) divisors.push_back(i);
  }
  std::string text;
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == divisors.size() ? " or " : ", ", divisors[i]);
  }
  return text;
}

int num_groups_of(const GenerateOptions& options, int num_ranks) {
  if (num_ranks % options.cp_size != 0) {
    throw ConfigError("cp_size: got {} for {} rank{}, want a divisor of {}; hint: {}", options.cp_size, num_ranks,
                      num_ranks == 1 ? "" : "s", num_ranks, divisors_of(num_ranks));
  }
  return static_cast<int>(num_ranks / options.cp_size);
}

// How many of the teams, the first ones, are of two groups.
int num_pairs_of(const GenerateOptions& options, int num_groups, int num_prompts) {
  switch (options.guidance_parallel) {
    case GuidanceParallel::kOff:
      return 0;
    case GuidanceParallel::kOn:
      if (num_groups % 2 != 0) {
        throw ConfigError(
            "guidance_parallel: got on with {} group{} of {} rank{}, want an even number of groups; hint: "
            "--guidance-parallel auto, or twice the ranks",
            num_groups, num_groups == 1 ? "" : "s", options.cp_size, options.cp_size == 1 ? "" : "s");
      }
      return std::min(num_groups / 2, num_prompts);
    case GuidanceParallel::kAuto:
      break;
  }
  return options.guidance == 0 ? 0 : std::clamp(num_groups - num_prompts, 0, num_prompts);
}

}  // namespace

Teams::Teams(const GenerateOptions& options, int num_ranks, std::size_t num_prompts)
    : num_ranks_(num_ranks), num_prompts_(num_prompts) {
  const int num_groups = num_groups_of(options, num_ranks);
  group_size_ = static_cast<int>(options.cp_size);
  // More prompts than groups make no more teams.
  const int most = static_cast<int>(std::min<std::size_t>(num_prompts, static_cast<std::size_t>(num_groups)));
  const int num_pairs = num_pairs_of(options, num_groups, most);
  const int num_teams = options.guidance_parallel == GuidanceParallel::kOn ? num_pairs : most;
  for (int i = 0; i < num_teams; ++i) {
    teams_.push_back({.first_rank = (i + std::min(i, num_pairs)) * group_size_, .num_groups = i < num_pairs ? 2 : 1});
  }
}

Place Teams::place_of(int rank) const {
  Place place;
  for (std::size_t i = 0; i < teams_.size(); ++i) {
    const Team& team = teams_[i];
    const int offset = rank - team.first_rank;
    if (offset < 0 || offset >= team.num_groups * group_size_) continue;
    place.team = static_cast<int>(i);
    const int first = team.first_rank + offset / group_size_ * group_size_;
    for (int j = 0; j < group_size_; ++j) place.context_ranks.push_back(first + j);
    for (int j = 0; j < team.num_groups; ++j) {
      place.branch_ranks.push_back(team.first_rank + j * group_size_ + offset % group_size_);
    }
  }
  return place;
}

int Teams::num_spare_ranks() const {
  int used = 0;
  for (const Team& team : teams_) used += team.num_groups * group_size_;
  return num_ranks_ - used;
}

}  // namespace dfm::generate
