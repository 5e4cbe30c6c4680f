#include "prepare/grouper.h"

#include <algorithm>
#include <utility>

namespace dfm::prepare {

Group Grouper::take(std::list<OpenGroup>::iterator group) {
  Group numbers = std::move(group->numbers);
  num_waiting_pixels_ -= static_cast<std::int64_t>(numbers.size()) * group->height * group->width;
  open_.erase(group);
  return numbers;
}

std::vector<Group> Grouper::add(std::uint64_t number, std::int64_t frames, std::int64_t height, std::int64_t width) {
  std::vector<Group> complete;
  const std::int64_t pixels = height * width;
  if (frames > 1 || 2 * pixels > limits_.max_pixels) {
    complete.push_back({number});
  } else {
    auto group = std::find_if(open_.begin(), open_.end(),
                              [&](const OpenGroup& open) { return open.height == height && open.width == width; });
    if (group == open_.end()) group = open_.insert(open_.end(), {height, width, {}});
    group->numbers.push_back(number);
    num_waiting_pixels_ += pixels;
    if ((static_cast<std::int64_t>(group->numbers.size()) + 1) * pixels > limits_.max_pixels) {
      complete.push_back(take(group));
    }
  }
  while (!open_.empty() && (open_.front().numbers.front() + limits_.max_lag <= number ||
                            num_waiting_pixels_ > limits_.max_waiting_pixels)) {
    complete.push_back(take(open_.begin()));
  }
  return complete;
}

std::vector<Group> Grouper::finish() {
  std::vector<Group> complete;
  while (!open_.empty()) complete.push_back(take(open_.begin()));
  return complete;
}

}  // namespace dfm::prepare
