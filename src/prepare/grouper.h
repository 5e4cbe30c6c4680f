#pragma once
// Which pictures are encoded in one batch. A function of the sizes in the order in which they come, and of nothing
// else: the same list gives the same batches, however fast the threads are.
#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

namespace dfm::prepare {

struct GroupLimits {
  std::int64_t max_pixels = std::int64_t{4} << 20;  // of a group
  std::uint64_t max_lag = 256;                      // how many numbers an item may wait for others of its size
  std::int64_t max_waiting_pixels = std::int64_t{64} << 20;
};

// Numbers of a group's items, ascending.
using Group = std::vector<std::uint64_t>;

class Grouper {
 public:
  explicit Grouper(const GroupLimits& limits) : limits_(limits) {}

  // The groups that are complete now. Numbers ascend; a clip, or a picture too large to share, is a group at once.
  std::vector<Group> add(std::uint64_t number, std::int64_t frames, std::int64_t height, std::int64_t width);
  // What is left, by age.
  std::vector<Group> finish();
  [[nodiscard]] std::int64_t num_waiting_pixels() const { return num_waiting_pixels_; }

 private:
  struct OpenGroup {
    std::int64_t height, width;
    Group numbers;
  };
  Group take(std::list<OpenGroup>::iterator group);

  GroupLimits limits_;
  std::list<OpenGroup> open_;  // by age: that of the first number
  std::int64_t num_waiting_pixels_ = 0;
};

}  // namespace dfm::prepare
