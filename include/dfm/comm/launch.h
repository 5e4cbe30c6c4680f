#pragma once
// Who this process is among its peers, from the launcher's environment: torchrun (RANK, WORLD_SIZE, LOCAL_RANK), Open
// MPI (OMPI_COMM_WORLD_*), Slurm (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID); alone it is rank 0 of 1.
// `dfm --nproc-per-node N` speaks torchrun's dialect. MASTER_ADDR and MASTER_PORT say where the ranks meet; mpirun and
// srun do without: one host meets at 127.0.0.1, Slurm's hosts at the first of the step, at a port made of the job's id.
#include <functional>
#include <optional>
#include <string>

namespace dfm::comm {

struct Launch {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  std::string launcher = "none";  // none, torchrun, mpirun, srun, dfm
  // Where the ranks meet. With an agent's store (torchrun, dfm --nproc-per-node) it exists already; else rank 0 opens
  // it.
  std::string master_address = "127.0.0.1";
  int master_port = 29500;
  bool uses_agent_store = false;
  int restart_count = 0;  // torchrun's: the attempts of one agent do not meet
  std::string job;        // the launcher's id of this job, so that two jobs do not meet either; may be empty
};

// `get` reads an environment variable; a malformed or half-set environment is a CommError that names the variable, and
// so is one of several hosts without a place to meet.
Launch read_launch(const std::function<std::optional<std::string>(const std::string&)>& get);
Launch read_launch();  // from the process environment

}  // namespace dfm::comm
