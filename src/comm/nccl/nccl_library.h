#pragma once
// What libdfm_nccl.so exports: `extern "C" const NcclLibrary* dfm_nccl_library()`.
#include "comm/group_request.h"

namespace dfm::comm {

struct NcclLibrary {
  static constexpr int kVersion = 1;  // of this struct, GroupRequest, Group and Watch
  int version = kVersion;
  GroupPtr (*make_group)(const GroupRequest& request) = nullptr;
};

}  // namespace dfm::comm
