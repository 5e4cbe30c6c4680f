#include <algorithm>
#include <sstream>

#include "dfm/base/error.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"

namespace dfm::checkpoint {
namespace {

namespace fs = std::filesystem;

std::optional<std::int64_t> integer(const Scalars& scalars, const char* name) {
  const auto found = scalars.find(name);
  if (found == scalars.end()) return std::nullopt;
  const auto* value = std::get_if<std::int64_t>(&found->second);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

void check_id(const TensorFile& file, const fs::path& path, const Scalars& scalars, const char* key) {
  const auto want = integer(scalars, key);
  const std::int64_t got = file.content_id();
  if (want && *want != got)
    throw CheckpointError(
        "{}: got content {:08x}, want {:08x} as {} beside it says; hint: the file is of another save, use another "
        "checkpoint",
        path.string(), got, *want, extra::kFileName);
}

// Runs `body` on this rank; the first error of any rank becomes that of every rank. What is no checkpoint's fault goes
// on as it is.
template <typename Body>
void on_all_ranks(comm::World& world, Body&& body) {
  std::string mine;
  try {
    body();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kCheckpoint) throw;
    mine = error.what();
  }
  for (const std::string& text : world.gather_text(mine)) {
    if (!text.empty()) throw CheckpointError("{}", text);
  }
}

}  // namespace

void verify_iteration(const fs::path& path) {
  const auto [folder, number] = resolve_iteration(path);
  for (const char* name :
       {extra::kFileName, extra::kWeightsFileName, extra::kOptimizerFileName, extra::kConfigFileName}) {
    std::error_code error;
    if (!fs::is_regular_file(folder / name, error))
      throw CheckpointError("checkpoint {}: got no file {}, want it; hint: use another checkpoint", folder.string(),
                            name);
  }
  const fs::path weights = folder / extra::kWeightsFileName, optimizer = folder / extra::kOptimizerFileName;
  const TensorFile state(folder / extra::kFileName);
  check_id(TensorFile(weights), weights, state.scalars(), extra::kWeightsId);
  check_id(TensorFile(optimizer), optimizer, state.scalars(), extra::kOptimizerId);
  const auto iteration = integer(state.scalars(), extra::kIteration);
  if (!iteration)
    throw CheckpointError("{}: got no '{}', want an integer", (folder / extra::kFileName).string(), extra::kIteration);
  if (*iteration != number)
    throw CheckpointError("{}: got iteration {}, want {} as its folder says; hint: use another checkpoint",
                          (folder / extra::kFileName).string(), *iteration, number);
}

void verify_iteration_data(const fs::path& folder, comm::World& world) {
  on_all_ranks(world, [&] { verify_iteration(folder); });
  on_all_ranks(world, [&] {
    for (const char* name : {extra::kWeightsFileName, extra::kOptimizerFileName}) {
      TensorFile(folder / name)
          .verify(static_cast<std::uint64_t>(world.rank()), static_cast<std::uint64_t>(world.size()));
    }
  });
}

WholeIteration newest_whole_iteration(const fs::path& run_folder, comm::World& world) {
  WholeIteration result;
  std::vector<IterationFolder> candidates;
  // Rank 0's view: what the others see may lag behind on a network file system.
  std::string seen;
  if (world.is_first()) {
    for (const IterationFolder& one : complete_iterations(run_folder))
      seen += fmt::format("{} {}\n", one.iteration, one.path.filename().string());
  }
  std::istringstream lines(world.gather_text(seen).at(0));
  std::string name;
  for (std::int64_t iteration = 0; lines >> iteration >> name;) candidates.push_back({run_folder / name, iteration});
  std::reverse(candidates.begin(), candidates.end());
  for (const IterationFolder& candidate : candidates) {
    try {
      verify_iteration_data(candidate.path, world);
      result.found = candidate;
      return result;
    } catch (const CheckpointError& error) {
      result.refused.emplace_back(error.what());
    }
  }
  if (!result.refused.empty())
    throw CheckpointError("run folder {}: got no iteration that is whole of {}; the newest: {}", run_folder.string(),
                          candidates.size(), result.refused.front());
  return result;
}

}  // namespace dfm::checkpoint
