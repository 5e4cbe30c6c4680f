#include "prepare/texts.h"

#include <ATen/ATen.h>

#include <utility>

namespace dfm::prepare {

at::Tensor TextCache::rows(std::uint64_t /*number*/, const std::string& caption) {
  std::promise<at::Tensor> promise;
  std::shared_future<at::Tensor> known;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = rows_.find(caption); found != rows_.end()) {
      known = found->second;
    } else {
      if (rows_.size() >= most_texts_) rows_.clear();
      rows_.emplace(caption, promise.get_future().share());
    }
  }
  if (known.valid()) return known.get();
  try {
    at::Tensor rows = with_room(encoder_.name(), [&] { return encoder_.encode({caption}).at(0).to(at::kCPU); });
    promise.set_value(rows);
    const std::lock_guard lock(mutex_);
    ++counts_.captions;
    counts_.rows += rows.size(0);
    return rows;
  } catch (...) {
    promise.set_exception(std::current_exception());
    throw;
  }
}

Texts::Counts TextCache::encoded() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace dfm::prepare
