#pragma once
// Everything that is wrong with a checkpoint has the exit code of a checkpoint.
#include <utility>

#include "dfm/base/error.h"

namespace dfm::checkpoint {

// Everything that is wrong with a checkpoint has the exit code of a checkpoint.
template <typename Body>
auto as_checkpoint_error(Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kData) throw;
    throw CheckpointError("{}", error.what());
  }
}

}  // namespace dfm::checkpoint
