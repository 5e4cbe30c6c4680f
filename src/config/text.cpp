#include "dfm/config/text.h"

#include <fmt/format.h>

#include <algorithm>

namespace dfm::config {
namespace {

std::string last_part(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

// "an integer or null" -> "N"; "one of a, b" -> "a|b".
std::string placeholder(const Option& option) {
  std::string type = option.type;
  if (const std::size_t null = type.find(" or null"); null != std::string::npos) type.resize(null);
  if (type.starts_with("an integer")) return "N";
  if (type == "a number") return "X";
  if (type == "a path") return "PATH";
  if (type.starts_with("one of ")) {
    std::string names;
    for (const char c : type.substr(7)) {
      if (c != ' ') names += c == ',' ? '|' : c;
    }
    return names;
  }
  return type.starts_with("a list") ? "[A,B,...]" : "TEXT";
}

// "" when there is nothing worth showing: null, an empty text, a switch that is off.
std::string shown_default(const Option& option) {
  const std::string text = option.text();
  return text == "null" || text == "\"\"" || (option.is_switch && text == "false") ? "" : text;
}

std::string escape_cell(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

}  // namespace

std::string flag_name(std::string_view option) {
  std::string flag = fmt::format("--{}", option);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string help_row(std::string_view left, std::string_view right, int left_width, int width) {
  std::string text = fmt::format("  {:<{}}", left, left_width);
  const auto margin = static_cast<std::size_t>(left_width) + 2;
  const std::string new_line = fmt::format("\n{:{}}", "", margin);
  if (left.size() >= static_cast<std::size_t>(left_width)) text += new_line;
  std::size_t column = margin;
  std::size_t at = 0;
  while (at < right.size()) {
    std::size_t end = right.find(' ', at);
    if (end == std::string_view::npos) end = right.size();
    const std::string_view word = right.substr(at, end - at);
    if (column > margin && column + word.size() + 1 > static_cast<std::size_t>(width)) {
      text += new_line;
      column = margin;
    }
    if (column > margin) {
      text += ' ';
      ++column;
    }
    text += word;
    column += word.size();
    at = end + 1;
  }
  return text + "\n";
}

std::string flags_help(const Tree& tree, int width) {
  std::string text;
  for (const Option& option : tree.options) {
    const std::string flag = flag_name(option.name);
    const std::string left =
        option.is_switch ? fmt::format("--[no-]{}", flag.substr(2)) : flag + " " + placeholder(option);
    std::string right = option.help;
    if (option.is_required) {
      right += " (required)";
    } else if (const std::string value = shown_default(option); !value.empty()) {
      right += fmt::format(" [{}]", value);
    }
    text += help_row(left, right, 26, width);
  }
  return text;
}

std::string sections_help(const Tree& tree, int width) {
  std::string text;
  const auto add_options = [&](const std::string& section) {
    for (const Option& option : tree.options) {
      if (option.section != section) continue;
      const bool is_enum = option.type.starts_with("one of ");
      const std::string right = is_enum ? fmt::format("{} ({})", option.help, placeholder(option)) : option.help;
      text += help_row(fmt::format("{}={}", option.name, option.text()), right, 40, width);
    }
  };
  for (const SectionRow& section : tree.sections) {
    text += fmt::format("\n{}: {}\n", section.name, section.help);
    add_options(section.name);
  }
  if (std::any_of(tree.options.begin(), tree.options.end(), [](const Option& o) { return o.section.empty(); })) {
    text += "\nat the top:\n";
    add_options("");
  }
  return text;
}

std::string markdown(const Tree& tree, bool flags) {
  std::string text;
  const auto add_table = [&](const std::string& section) {
    std::string rows;
    for (const Option& option : tree.options) {
      if (option.section != section) continue;
      std::string shown = option.is_required ? "required" : fmt::format("`{}`", option.text());
      rows += fmt::format("| `{}` | {} | {} | {} |\n", flags ? flag_name(option.name) : last_part(option.name), shown,
                          escape_cell(option.type), escape_cell(option.help));
    }
    if (!rows.empty()) text += "| Option | Default | Type | Meaning |\n|---|---|---|---|\n" + rows;
  };
  add_table("");
  for (const SectionRow& section : tree.sections) {
    text += fmt::format("\n### {}\n{}.\n\n", section.name, section.help);
    add_table(section.name);
  }
  return text;
}

}  // namespace dfm::config
