#pragma once
// Who this process is among its peers, from the launcher's environment: torchrun (RANK, WORLD_SIZE, LOCAL_RANK), Open
// MPI (OMPI_COMM_WORLD_*), Slurm (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID); alone it is rank 0 of 1.
#include <functional>
#include <optional>
#include <string>

namespace dfm::comm {

struct Launch {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  std::string launcher = "none";  // none, torchrun, mpirun, srun
};

// `get` reads an environment variable; a malformed or half-set environment is a CommError that names the variable.
Launch read_launch(const std::function<std::optional<std::string>(const std::string&)>& get);
Launch read_launch();  // from the process environment

}  // namespace dfm::comm
