#include "ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "dfm/ops/device.h"

namespace dfm::cli {
namespace {

constexpr int kMostRanks = 1024;

void share_cores(const comm::Launch& launch) {
  if (launch.local_world_size == 1 || std::getenv("OMP_NUM_THREADS") != nullptr) return;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int cores = CPU_COUNT(&allowed), online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  // mpirun and srun bind each rank to cores of its own, or several to a socket.
  const bool is_bound = (launch.launcher == "mpirun" || launch.launcher == "srun") && cores < online;
  const int share = (is_bound ? online : cores) / launch.local_world_size;
  ops::set_num_threads(std::clamp(share, 1, cores));
}

}  // namespace

std::shared_ptr<comm::World> join_world(const std::string& command, const at::Device& device,
                                        const comm::DistConfig& dist) {
  const comm::Launch launch = comm::read_launch();
  share_cores(launch);
  // Under our own supervisor the rank stands before each line already.
  if (launch.launcher != "dfm") log::set_rank(launch.rank, launch.world_size);
  return comm::World::join(launch, {.command = command,
                                    .backend = dist.distributed_backend,
                                    .device = device,
                                    .timeout = std::chrono::duration<double>(60 * dist.distributed_timeout_minutes)});
}

bool is_first_rank() {
  try {
    return comm::read_launch().rank == 0;
  } catch (const Error&) {  // reported where the ranks meet
    return true;
  }
}

RanksFlag take_ranks_flag(std::vector<std::string>& args) {
  RanksFlag flag;
  for (std::size_t i = 0; i < args.size() && args[i].starts_with('-'); ++i) {
    const std::size_t equals = std::min(args[i].find('='), args[i].size());
    const std::string name = args[i].substr(0, equals);
    if (name == "--device") ++i;
    if (name != "--nproc-per-node" && name != "--nproc_per_node") continue;
    const bool has_value = equals < args[i].size();
    const auto at = args.begin() + static_cast<std::ptrdiff_t>(i);
    flag.is_given = true;
    if (has_value) {
      flag.value = args[i].substr(equals + 1);
      args.erase(at);
    } else {
      flag.value = i + 1 < args.size() ? args[i + 1] : "";
      args.erase(at, i + 1 < args.size() ? at + 2 : at + 1);
    }
    --i;
  }
  return flag;
}

int checked_num_ranks(const std::string& value) {
  int count = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count < 1 || count > kMostRanks) {
    throw ConfigError(
        "--nproc-per-node: got '{}', want an integer from 1 to {} (command line); hint: dfm --nproc-per-node 4 train "
        "... "
        "starts 4 ranks on this machine",
        value, kMostRanks);
  }
  const comm::Launch launch = comm::read_launch();
  if (launch.launcher != "none") {
    throw ConfigError(
        "--nproc-per-node: got {} in a process that {} has started (rank {} of {}), want one launcher (command line); "
        "hint: leave it out",
        count, launch.launcher, launch.rank, launch.world_size);
  }
  return count;
}

}  // namespace dfm::cli
