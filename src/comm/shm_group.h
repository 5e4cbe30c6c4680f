#pragma once
// Ranks of one host, through shared memory: CPU tensors directly, CUDA tensors staged through pinned memory (several
// ranks may share one GPU). An operation is complete when its call returns.
#include "comm/group_request.h"

namespace dfm::comm {

// Called by all ranks of the group; returns when all have. ResourceError: no memory. CommError: not one host.
GroupPtr make_shm_group(const GroupRequest& request);

}  // namespace dfm::comm
