#include "dfm/base/log.h"

#include <cstdio>
#include <mutex>

#include "dfm/base/progress.h"

namespace dfm::log {
namespace {

std::mutex mutex;
Level lowest_level = Level::kInfo;
int rank_of_process = 0;
int size_of_world = 1;

}  // namespace

void set_level(Level lowest) { lowest_level = lowest; }

void set_rank(int rank, int world_size) {
  rank_of_process = rank;
  size_of_world = world_size;
}

void write(Level level, std::string_view layer, std::string_view text) {
  if (level < lowest_level) return;
  const std::lock_guard lock(mutex);
  Progress::clear_line();
  const std::string rank = size_of_world > 1 ? fmt::format("[rank {}]", rank_of_process) : "";
  fmt::print(stderr, "{}[{}] {}{}\n", rank, layer, level == Level::kWarning ? "warning: " : "", text);
}

}  // namespace dfm::log
