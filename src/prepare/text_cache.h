#pragma once
// Captions repeat: one text is encoded once while it is remembered.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <mutex>
#include <string>
#include <unordered_map>

#include "dfm/models/encoders.h"

namespace dfm::prepare {

class TextCache {
 public:
  explicit TextCache(const models::TextEncoder& encoder) : encoder_(encoder) {}

  // Thread safe. Two threads may encode the same new text at once: the result is the same.
  at::Tensor encode(const std::string& caption) {
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = rows_.find(caption); found != rows_.end()) return found->second;
    }
    at::Tensor rows = encoder_.encode({caption}).at(0).to(at::kCPU);
    const std::lock_guard lock(mutex_);
    if (rows_.size() >= kMostTexts) rows_.clear();
    return rows_.emplace(caption, std::move(rows)).first->second;
  }

 private:
  static constexpr std::size_t kMostTexts = 1024;  // about 100 MB for captions of 25 words
  const models::TextEncoder& encoder_;
  std::mutex mutex_;
  std::unordered_map<std::string, at::Tensor> rows_;
};

}  // namespace dfm::prepare
