#include "dfm/comm/launch.h"

#include <array>
#include <charconv>
#include <cstdlib>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/hash.h"

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

int read_int(const Getter& get, const char* name, int least, int otherwise) {
  const auto text = get(name);
  return text ? parse(name, *text, least) : otherwise;
}

// A batch script's shell, and an `salloc` session, have SLURM_NTASKS but are no task of a step: SLURM_STEP_ID tells.
bool is_outside_slurm_step(const Names& names, const Getter& get) {
  return std::string(names.launcher) == "srun" && (!get("SLURM_STEP_ID") || get("SLURM_STEP_ID") == "batch");
}

// SLURM_STEP_TASKS_PER_NODE: tasks of each host in turn, "4(x2),3" is 4, 4, 3. What is not of this form gives 0.
int tasks_of_node(const std::string& text, int node) {
  for (std::size_t at = 0; at < text.size();) {
    int tasks = 0, times = 1;
    const char* const end = text.data() + text.size();
    auto parsed = std::from_chars(text.data() + at, end, tasks);
    if (parsed.ec != std::errc()) return 0;
    if (end - parsed.ptr > 2 && parsed.ptr[0] == '(' && parsed.ptr[1] == 'x') {
      parsed = std::from_chars(parsed.ptr + 2, end, times);
      if (parsed.ec != std::errc() || parsed.ptr == end || *parsed.ptr != ')') return 0;
      ++parsed.ptr;
    }
    if (node < times) return tasks;
    node -= times;
    at = static_cast<std::size_t>(parsed.ptr - text.data()) + 1;
  }
  return 0;
}

// The first host of "gpu[03-05,9],login1": gpu03.
std::string first_host(const std::string& list) {
  std::string host;
  for (std::size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const std::size_t close = std::min(list.find(']', i), list.size());
    const std::size_t end = std::min(list.find_first_of("-,]", i), close);
    host += list.substr(i + 1, end - i - 1);
    i = close;
  }
  return host;
}

std::string mpirun_job(const Getter& get) {
  for (const char* name : {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"}) {
    if (const auto value = get(name)) return *value;
  }
  const std::string id = get("PMIX_ID").value_or("");  // NAMESPACE.RANK
  return id.substr(0, id.rfind('.'));
}

// Below the ports that the kernel gives to outgoing connections (from 32768).
int port_of_job(const std::string& job) { return 10000 + static_cast<int>(fnv1a64(job) % 20000); }

void read_torchrun(Launch& launch, const Getter& get) {
  launch.local_world_size = read_int(get, "LOCAL_WORLD_SIZE", 1, launch.world_size);
  launch.restart_count = read_int(get, "TORCHELASTIC_RESTART_COUNT", 0, 0);
  const std::string agent = get("TORCHELASTIC_USE_AGENT_STORE").value_or("");
  launch.uses_agent_store = agent == "True" || agent == "true" || agent == "1";
  launch.job = get("TORCHELASTIC_RUN_ID").value_or("");
  if (get("DFM_SUPERVISED")) launch.launcher = "dfm";  // set by comm/supervisor.cpp
}

void read_mpirun(Launch& launch, const Getter& get) {
  launch.local_world_size = read_int(get, "OMPI_COMM_WORLD_LOCAL_SIZE", 1, launch.world_size);
  launch.job = mpirun_job(get);
  launch.master_port = port_of_job(launch.job);
}

void read_srun(Launch& launch, const Getter& get) {
  const int node = read_int(get, "SLURM_NODEID", 0, 0);
  int tasks = tasks_of_node(get("SLURM_STEP_TASKS_PER_NODE").value_or(""), node);
  if (tasks == 0) tasks = tasks_of_node(get("SLURM_NTASKS_PER_NODE").value_or(""), 0);
  launch.local_world_size = tasks > 0 ? tasks : launch.world_size;
  launch.job = get("SLURM_JOB_ID").value_or("") + "." + get("SLURM_STEP_ID").value_or("");
  launch.master_port = port_of_job(launch.job);
  if (launch.local_world_size == launch.world_size) return;
  // The host of rank 0. SLURM_LAUNCH_NODE_IPADDR is that of srun itself, which may be a login node: the second choice.
  launch.master_address = first_host(get("SLURM_STEP_NODELIST").value_or(""));
  if (launch.master_address.empty()) launch.master_address = get("SLURM_LAUNCH_NODE_IPADDR").value_or("");
}

void read_meeting_point(Launch& launch, const Getter& get) {
  const auto address = get("MASTER_ADDR");
  if (address) launch.master_address = *address;
  launch.master_port = read_int(get, "MASTER_PORT", 1, launch.master_port);
  if (launch.master_port > 65535)
    throw CommError("environment variable MASTER_PORT: got {}, want at most 65535", launch.master_port);
  const bool is_known = address || launch.launcher == "torchrun" || launch.launcher == "dfm" ||
                        (launch.launcher == "srun" && !launch.master_address.empty()) ||
                        launch.local_world_size == launch.world_size;
  if (!is_known) {
    throw CommError(
        "environment variable MASTER_ADDR: got none, want the host of rank 0, since {} ranks of {} are on this host "
        "({}); hint: {}",
        launch.local_world_size, launch.world_size, launch.launcher,
        launch.launcher == "mpirun" ? "mpirun -x MASTER_ADDR=HOST ..." : "export MASTER_ADDR=HOST");
  }
}

Launch launch_of(const Names& names, const std::string& rank, const std::string& world_size, const Getter& get) {
  Launch launch;
  launch.launcher = names.launcher;
  launch.world_size = parse(names.world_size, world_size, 1);
  launch.rank = parse(names.rank, rank, 0);
  if (launch.rank >= launch.world_size) {
    throw CommError("environment variable {}: got {}, want less than {} = {}", names.rank, launch.rank,
                    names.world_size, launch.world_size);
  }
  launch.local_rank = read_int(get, names.local_rank, 0, launch.rank);
  if (launch.launcher == "torchrun") read_torchrun(launch, get);
  if (launch.launcher == "mpirun") read_mpirun(launch, get);
  if (launch.launcher == "srun") read_srun(launch, get);
  if (launch.world_size > 1) read_meeting_point(launch, get);
  return launch;
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
    return launch_of(names, *rank, *world_size, get);
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
