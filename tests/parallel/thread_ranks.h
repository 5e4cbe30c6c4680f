#pragma once
// Ranks as threads of one process, for checks of many layouts in little time: groups whose operations block until every
// member has called them, as those of shared memory do, and give up after 30 s.
#include <functional>
#include <string>
#include <vector>

#include "dfm/comm/group.h"

namespace dfm::parallel::test {

// Makes the group of these ranks for the calling rank, which is one of them. Groups of the same name and ranks are one.
using MakeGroup = std::function<comm::GroupPtr(const std::string& name, const std::vector<int>& ranks)>;

// Runs body(rank, make_group) on `num_ranks` threads. An error of a rank is a failure of the test.
void run_threads(int num_ranks, const std::function<void(int rank, const MakeGroup& make_group)>& body);

}  // namespace dfm::parallel::test
