// The checks of optimizer_cases.h over real processes and their shared memory.
#include <gtest/gtest.h>

#include <map>

#include "parallel/optimizer_cases.h"
#include "support/ranks.h"

namespace dfm::parallel::test {
namespace {

MakeGroup groups_of(comm::World& world) {
  auto made = std::make_shared<std::map<std::pair<std::string, std::vector<int>>, comm::GroupPtr>>();
  return [&world, made](const std::string& name, const std::vector<int>& ranks) {
    comm::GroupPtr& group = (*made)[{name, ranks}];
    if (!group) group = world.group(name, ranks);
    return group;
  };
}

RANK_CASE(optimizer) {
  const MakeGroup make_group = groups_of(world);
  const std::vector<OptimizerCase> cases = optimizer_cases(world.size());
  for (const OptimizerCase& the_case : cases) {
    world.set_place(the_case.name);
    check_equals_one_rank(the_case, world.rank(), make_group);
  }
  for (const OptimizerCase& to : cases) {
    if (to.dtype == cases.front().dtype) check_state_goes_to(cases.front(), to, world.rank(), make_group);
  }
}

TEST(DistributedOptimizerOverProcesses, EqualsOneRank) {
  dfm::test::run_ranks(2, "optimizer");
  dfm::test::run_ranks(4, "optimizer");
}

}  // namespace
}  // namespace dfm::parallel::test
