#pragma once
// `dfm --nproc-per-node N`: the launcher for users without torchrun. It starts N ranks of this program on this host,
// puts `[rank] ` before each line that they print, and answers for them as one program.
#include <string>
#include <vector>

namespace dfm::comm {

// Runs this program with `args` N times. SIGTERM, SIGINT and SIGHUP go to all ranks; when one fails the others have
// five seconds to end by themselves; when this process dies the ranks die too. The exit code of the first rank that
// failed (a rank ended by a signal from elsewhere: kComm). CommError: no process to be had.
int supervise(int num_ranks, const std::vector<std::string>& args);

}  // namespace dfm::comm
