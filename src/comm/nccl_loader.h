#pragma once
// Groups of GPUs through NCCL. They are in a library of their own, libdfm_nccl.so, which needs LibTorch's CUDA half and
// is loaded on first use.
#include "comm/group_request.h"

namespace dfm::comm {

// Called by all ranks of the group; returns when all have. request.device is this rank's GPU, another one on each rank.
// ConfigError: the library is not there. CommError: NCCL's.
GroupPtr make_nccl_group(const GroupRequest& request);

}  // namespace dfm::comm
