#pragma once
// Text for people made of a Tree: help on a terminal and tables for docs/config.md.
#include <string>
#include <string_view>

#include "dfm/config/tree.h"

namespace dfm::config {

// "short_side" -> "--short-side"
std::string flag_name(std::string_view option);

// A flat struct's options as flags, a line or more each, wrapped to `width` columns.
std::string flags_help(const Tree& tree, int width = 100);
// A config's options by section, `section.option=default`.
std::string sections_help(const Tree& tree, int width = 100);
// Two columns: `left` padded to `left_width`, `right` wrapped to `width` beside it.
std::string help_row(std::string_view left, std::string_view right, int left_width, int width);

// One Markdown table a section; `flags`: names written as flags.
std::string markdown(const Tree& tree, bool flags);

}  // namespace dfm::config
