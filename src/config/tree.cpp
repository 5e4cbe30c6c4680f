#include "dfm/config/tree.h"

#include <fmt/format.h>

#include <algorithm>

namespace dfm::config {

const Option* Tree::find(std::string_view name) const {
  for (const Option& option : options) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

bool Tree::has_section(std::string_view name) const {
  for (const SectionRow& section : sections) {
    if (section.name == name) return true;
  }
  return false;
}

Values list_values(const Tree& tree) {
  Values values;
  values.reserve(tree.options.size());
  for (const Option& option : tree.options) values.emplace_back(option.name, option.text());
  return values;
}

std::string to_yaml(const Tree& tree, const Tree& defaults, YamlStyle style, const Origins* origins) {
  // Options without a section come first, so that no reader takes them for a part of the section above.
  std::string text;
  const auto add_options = [&](const std::string& section, const std::string& indent) {
    std::string block;
    for (std::size_t i = 0; i < tree.options.size(); ++i) {
      const Option& option = tree.options[i];
      if (option.section != section) continue;
      const std::string value = option.text();
      if (style == YamlStyle::kMinimal && value == defaults.options[i].text()) continue;
      const std::size_t dot = option.name.rfind('.');
      std::string line =
          fmt::format("{}{}: {}", indent, option.name.substr(dot == std::string::npos ? 0 : dot + 1), value);
      if (origins != nullptr) {
        const auto found = origins->find(option.name);
        if (found != origins->end()) line = fmt::format("{:<40}  # {}", line, found->second);
      }
      block += line + "\n";
    }
    return block;
  };
  text += add_options("", "");
  // A nested section stands right after the section that holds it: declaration order is depth first.
  std::vector<std::string> opened;
  for (const SectionRow& section : tree.sections) {
    const auto depth = static_cast<std::size_t>(std::count(section.name.begin(), section.name.end(), '.'));
    const std::string block = add_options(section.name, std::string(2 * depth + 2, ' '));
    if (block.empty()) continue;
    std::string parent;
    for (std::size_t level = 0; level <= depth; ++level) {
      const std::size_t end = section.name.find('.', parent.empty() ? 0 : parent.size() + 1);
      parent = section.name.substr(0, end);
      if (std::find(opened.begin(), opened.end(), parent) != opened.end()) continue;
      text += std::string(2 * level, ' ') +
              parent.substr(parent.rfind('.') == std::string::npos ? 0 : parent.rfind('.') + 1) + ":\n";
      opened.push_back(parent);
    }
    text += block;
  }
  return text;
}

}  // namespace dfm::config
