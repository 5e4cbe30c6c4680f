#pragma once
// What the World gives for making a group.
#include <functional>
#include <string>
#include <vector>

#include "comm/watch.h"
#include "dfm/comm/group.h"

namespace dfm::comm {

struct GroupRequest {
  std::string name;
  std::vector<int> ranks;  // of the world, in group order; two at least
  int rank = 0;            // of this process in the group
  at::Device device = at::kCPU;
  // This host has a core for each of its ranks: a rank may spin a little before it sleeps.
  bool may_spin = false;
  // The text of the group's first rank (bytes, 0 included). Called exactly once by every rank of the group, with "" by
  // the others.
  std::function<std::string(const std::string& mine)> share;
  Watch* watch = nullptr;  // outlives the group
};

}  // namespace dfm::comm
