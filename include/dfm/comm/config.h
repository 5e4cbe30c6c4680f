#pragma once
// Section `dist`: how ranks find and reach each other (names of Megatron-Bridge).
#include <array>
#include <cstdint>
#include <utility>

#include "dfm/config/schema.h"

namespace dfm::comm {

enum class Backend { kAuto, kNccl, kShm };
constexpr auto enum_names(Backend) {
  return std::array{std::pair{Backend::kAuto, "auto"}, std::pair{Backend::kNccl, "nccl"},
                    std::pair{Backend::kShm, "shm"}};
}

struct DistConfig {
  Backend distributed_backend = Backend::kAuto;
  double distributed_timeout_minutes = 10;
  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<DistConfig>(
        field("distributed_backend", &DistConfig::distributed_backend,
              "nccl (a GPU a rank), shm (ranks of one host through shared memory: CPUs, or several ranks on one GPU); "
              "auto: nccl on GPUs, shm on CPUs"),
        field("distributed_timeout_minutes", &DistConfig::distributed_timeout_minutes,
              "How long a rank waits for the others before the run ends", positive));
  }
};

}  // namespace dfm::comm
