#pragma once
// What a model knows about the ranks it is spread over: a value to hand on. On groups of one (the default) every region
// operation is the identity, so model code has no branches on it.
#include <cstdint>

#include "dfm/comm/group.h"
#include "dfm/parallel/context_comm.h"

namespace dfm::parallel {

struct Parallel {
  comm::GroupPtr tensor = comm::alone();   // weights of a layer are split over it
  comm::GroupPtr context = comm::alone();  // the tokens of a row are split over it
  // Between the matrices of a layer the tensor ranks share the tokens too (Korthikanti et al., arXiv 2205.05198).
  bool sequence = false;
  ContextComm context_comm = ContextComm::kP2p;

  // In how many equal parts a row's tokens lie between the matrices, and which of them is this rank's.
  [[nodiscard]] std::int64_t token_parts() const {
    return std::int64_t{context->size()} * (sequence ? tensor->size() : 1);
  }
  [[nodiscard]] std::int64_t token_part() const {
    return sequence ? std::int64_t{context->rank()} * tensor->size() + tensor->rank() : context->rank();
  }
};

}  // namespace dfm::parallel
