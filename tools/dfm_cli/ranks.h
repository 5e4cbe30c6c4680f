#pragma once
// The command line's part in a run of many ranks.
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "dfm/comm/config.h"
#include "dfm/comm/world.h"

namespace dfm::cli {

// Meets the other ranks, once the options are known to be good. Messages carry the rank from here on, and ranks of one
// host share its cores.
std::shared_ptr<comm::World> join_world(const std::string& command, const at::Device& device,
                                        const comm::DistConfig& dist);

// Whether this process speaks for the job while all ranks do the same: warnings about the command line.
bool is_first_rank();

// `dfm --nproc-per-node N ...`: the text of N, when the flag is there (both spellings, with '='); taken out of `args`.
// Flags after the subcommand are not looked at. Nothing of it when `value` is "".
struct RanksFlag {
  bool is_given = false;
  std::string value;
};
RanksFlag take_ranks_flag(std::vector<std::string>& args);
// ConfigError for what is no number of ranks, and for a flag within a launcher.
int checked_num_ranks(const std::string& value);

}  // namespace dfm::cli
