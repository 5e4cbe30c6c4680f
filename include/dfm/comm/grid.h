#pragma once
// Which ranks share what: pure functions of the axes' sizes. Rank order is Megatron's, tensor fastest, then context,
// data, pipeline:
//
//   rank = t + T (c + C (d + D p))      0 <= t < T, 0 <= c < C, 0 <= d < D, 0 <= p < P;  world = T C D P
//
// Example: T 2, C 2, D 2, P 1. Rank 6 = 0 + 2 (1 + 2 (1 + 2 * 0)): t 0, c 1, d 1, p 0. Its tensor group is {6, 7}, its
// context group {4, 6}, its data group {2, 6}, its data x context group {0, 2, 4, 6} (context faster).
#include <cstdint>
#include <string>
#include <vector>

namespace dfm::comm {

struct GridSizes {
  int tensor = 1, context = 1, data = 1, pipeline = 1;
  [[nodiscard]] int world() const { return tensor * context * data * pipeline; }
  bool operator==(const GridSizes&) const = default;
};

struct Coordinates {
  int tensor = 0, context = 0, data = 0, pipeline = 0;
  bool operator==(const Coordinates&) const = default;
};

// Axes along which ranks of a group differ.
struct Axes {
  bool tensor = false, context = false, data = false, pipeline = false;
};

Coordinates coordinates_of(int rank, const GridSizes& sizes);
int rank_of(const Coordinates& at, const GridSizes& sizes);
// The ranks that differ from `rank` along `axes` alone (itself included), ascending: the group's order.
std::vector<int> ranks_along(int rank, const Axes& axes, const GridSizes& sizes);

// The data axis is what is left: world / (tensor x context x pipeline). ConfigError with all numbers and the nearest
// layout that works when they do not divide the world.
GridSizes make_grid(int world_size, int tensor, int context, int pipeline);
// "TP 2 x CP 2 x DP 2" (axes of one left out; "1 rank" when all are).
std::string describe(const GridSizes& sizes);

}  // namespace dfm::comm
