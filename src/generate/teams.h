#pragma once
// Which ranks make which prompt: pure functions. Consecutive ranks form groups of cp_size, over which the tokens of a
// video lie. A team makes a prompt: one group, or two that share the branches of guidance. Prompt i is made by team
// i mod teams. Ranks without a team are spare.
//
//   cp_size 2, 8 ranks, 3 prompts: groups {0,1} {2,3} {4,5} {6,7}; prompt 0 by the first two, 1 and 2 by one each.
#include <cstddef>
#include <vector>

#include "dfm/generate/options.h"

namespace dfm::generate {

struct Team {
  int first_rank = 0;
  int num_groups = 1;  // 2: the first computes the conditional branch, the second the unconditional one
  bool operator==(const Team&) const = default;
};

// The place of a rank.
struct Place {
  int team = -1;                   // -1: spare
  std::vector<int> context_ranks;  // its group
  std::vector<int> branch_ranks;   // this rank and the one at the same place of the team's other group, if there is one
};

class Teams {
 public:
  // ConfigError when cp_size does not divide the ranks or they do not form pairs where the options want them.
  Teams(const GenerateOptions& options, int num_ranks, std::size_t num_prompts);

  [[nodiscard]] const std::vector<Team>& list() const { return teams_; }
  [[nodiscard]] Place place_of(int rank) const;
  // The most prompts that a team makes.
  [[nodiscard]] std::size_t num_rounds() const { return (num_prompts_ + teams_.size() - 1) / teams_.size(); }
  [[nodiscard]] int num_spare_ranks() const;

 private:
  int num_ranks_, group_size_ = 1;
  std::size_t num_prompts_;
  std::vector<Team> teams_;
};

}  // namespace dfm::generate
