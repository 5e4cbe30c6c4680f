#pragma once
// How attention crosses the context group (model.cp_comm_type).
#include <array>
#include <utility>

namespace dfm::parallel {

enum class ContextComm { kA2a, kP2p };
constexpr auto enum_names(ContextComm) {
  return std::array{std::pair{ContextComm::kA2a, "a2a"}, std::pair{ContextComm::kP2p, "p2p"}};
}

}  // namespace dfm::parallel
