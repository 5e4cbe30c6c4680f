#include "dfm/comm/grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <tuple>

#include "dfm/base/error.h"

namespace dfm::comm {
namespace {

// "tensor 4 x context 2 x pipeline 1"
std::string describe_request(int tensor, int context, int pipeline) {
  return fmt::format("tensor {} x context {} x pipeline {}", tensor, context, pipeline);
}

// The layout for this world with the most ranks in use as asked: sizes that divide the world, each at most what was
// asked for, the largest product first; among equals the one that keeps the tensor axis, then the context axis.
GridSizes nearest_layout(int world_size, int tensor, int context, int pipeline) {
  GridSizes best;
  const auto rank_layout = [](const GridSizes& sizes) {
    return std::tuple(sizes.tensor * sizes.context * sizes.pipeline, sizes.tensor, sizes.context);
  };
  for (int t = 1; t <= std::min(tensor, world_size); ++t) {
    if (tensor % t != 0 || world_size % t != 0) continue;
    for (int c = 1; c <= std::min(context, world_size / t); ++c) {
      if (context % c != 0 || world_size % (t * c) != 0) continue;
      for (int p = 1; p <= std::min(pipeline, world_size / (t * c)); ++p) {
        if (pipeline % p != 0 || world_size % (t * c * p) != 0) continue;
        const GridSizes sizes{.tensor = t, .context = c, .data = world_size / (t * c * p), .pipeline = p};
        if (rank_layout(sizes) > rank_layout(best)) best = sizes;
      }
    }
  }
  best.data = world_size / (best.tensor * best.context * best.pipeline);
  return best;
}

void require_positive(const char* name, int size) {
  if (size < 1) throw ConfigError("{}: got {}, want at least 1", name, size);
}

}  // namespace

Coordinates coordinates_of(int rank, const GridSizes& sizes) {
  if (rank < 0 || rank >= sizes.world()) {
    throw InternalError("rank of the grid {}: got {}, want 0 to {}", describe(sizes), rank, sizes.world() - 1);
  }
  Coordinates at;
  at.tensor = rank % sizes.tensor;
  at.context = rank / sizes.tensor % sizes.context;
  at.data = rank / (sizes.tensor * sizes.context) % sizes.data;
  at.pipeline = rank / (sizes.tensor * sizes.context * sizes.data);
  return at;
}

int rank_of(const Coordinates& at, const GridSizes& sizes) {
  return at.tensor + sizes.tensor * (at.context + sizes.context * (at.data + sizes.data * at.pipeline));
}

std::vector<int> ranks_along(int rank, const Axes& axes, const GridSizes& sizes) {
  const Coordinates mine = coordinates_of(rank, sizes);
  std::vector<int> ranks;
  for (int other = 0; other < sizes.world(); ++other) {
    const Coordinates at = coordinates_of(other, sizes);
    const bool belongs = (axes.tensor || at.tensor == mine.tensor) && (axes.context || at.context == mine.context) &&
                         (axes.data || at.data == mine.data) && (axes.pipeline || at.pipeline == mine.pipeline);
    if (belongs) ranks.push_back(other);
  }
  return ranks;
}

GridSizes make_grid(int world_size, int tensor, int context, int pipeline) {
  require_positive("number of ranks", world_size);
  require_positive("model.tensor_model_parallel_size", tensor);
  require_positive("model.context_parallel_size", context);
  require_positive("model.pipeline_model_parallel_size", pipeline);
  const std::int64_t model_ranks = std::int64_t{tensor} * context * pipeline;
  if (world_size % model_ranks != 0) {
    const GridSizes nearest = nearest_layout(world_size, tensor, context, pipeline);
    const std::int64_t more_ranks = (world_size / model_ranks + 1) * model_ranks;
    throw ConfigError(
        "layout: got {} ranks for {} = {}, want a multiple of {}; hint: start {} ranks, or use "
        "model.tensor_model_parallel_size={} model.context_parallel_size={} model.pipeline_model_parallel_size={} "
        "({}) with {}",
        world_size, describe_request(tensor, context, pipeline), model_ranks, model_ranks, more_ranks, nearest.tensor,
        nearest.context, nearest.pipeline, describe(nearest), world_size);
  }
  return {
      .tensor = tensor, .context = context, .data = static_cast<int>(world_size / model_ranks), .pipeline = pipeline};
}

std::string describe(const GridSizes& sizes) {
  std::string text;
  const auto add = [&](const char* axis, int size) {
    if (size > 1) text += fmt::format("{}{} {}", text.empty() ? "" : " x ", axis, size);
  };
  add("TP", sizes.tensor);
  add("CP", sizes.context);
  add("DP", sizes.data);
  add("PP", sizes.pipeline);
  return text.empty() ? "1 rank" : text;
}

}  // namespace dfm::comm
