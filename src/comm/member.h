#pragma once
// What each rank tells the others about itself when they meet.
#include <ATen/core/Tensor.h>

#include <string>

#include "dfm/comm/launch.h"

namespace dfm::comm {

struct Member {
  int rank = 0;
  int world_size = 1;
  int pid = 0;
  std::string host;    // for people
  std::string realm;   // equal for processes that can see each other's pids: host, boot and pid namespace
  std::string binary;  // version, size and checksum of the program
  std::string device;  // "cpu", or the GPU's own id

  [[nodiscard]] std::string to_text() const;
  static Member from_text(const std::string& text);  // CommError when malformed
};

Member this_member(const Launch& launch, const at::Device& device);

}  // namespace dfm::comm
