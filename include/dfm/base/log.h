#pragma once
// Messages for people on stderr: `[layer] text`, with the rank in front when there are several. Results go to stdout
// and are written by the subcommands themselves.
#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace dfm::log {

enum class Level { kDebug, kInfo, kWarning };

void set_level(Level lowest);
void set_rank(int rank, int world_size);
void write(Level level, std::string_view layer, std::string_view text);

template <typename... Args>
void info(std::string_view layer, fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kInfo, layer, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(std::string_view layer, fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, layer, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void debug(std::string_view layer, fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kDebug, layer, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace dfm::log
