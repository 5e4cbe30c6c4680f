#include "dfm/comm/launch.h"

#include <array>
#include <charconv>
#include <cstdlib>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

using Getter = std::function<std::optional<std::string>(const std::string&)>;

struct Names {
  const char* launcher;
  const char* rank;
  const char* world_size;
  const char* local_rank;
};
// torchrun first: it may itself have been started under srun or mpirun, and then its ranks are the finer ones.
constexpr std::array kLaunchers = {
    Names{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    Names{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    Names{"srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
};

int parse(const char* name, const std::string& text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least)
    throw CommError("environment variable {}: got '{}', want an integer >= {}", name, text, least);
  return value;
}

// A batch script's shell, and an `salloc` session, have SLURM_NTASKS but are no task of a step: SLURM_STEP_ID tells.
bool is_outside_slurm_step(const Names& names, const Getter& get) {
  return std::string(names.launcher) == "srun" && (!get("SLURM_STEP_ID") || get("SLURM_STEP_ID") == "batch");
}

}  // namespace

Launch read_launch(const Getter& get) {
  for (const Names& names : kLaunchers) {
    if (is_outside_slurm_step(names, get)) continue;
    const auto rank = get(names.rank);
    const auto world_size = get(names.world_size);
    if (!rank && !world_size) continue;
    if (!rank || !world_size) {
      throw CommError("environment variable {}: got none beside {}, want both or neither ({}); hint: unset {}",
                      rank ? names.world_size : names.rank, rank ? names.rank : names.world_size, names.launcher,
                      rank ? names.rank : names.world_size);
    }
    Launch launch;
    launch.launcher = names.launcher;
    launch.world_size = parse(names.world_size, *world_size, 1);
    launch.rank = parse(names.rank, *rank, 0);
    if (launch.rank >= launch.world_size) {
      throw CommError("environment variable {}: got {}, want less than {} = {}", names.rank, launch.rank,
                      names.world_size, launch.world_size);
    }
    const auto local_rank = get(names.local_rank);
    launch.local_rank = local_rank ? parse(names.local_rank, *local_rank, 0) : launch.rank;
    return launch;
  }
  return {};
}

Launch read_launch() {
  return read_launch([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  });
}

}  // namespace dfm::comm
