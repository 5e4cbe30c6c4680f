#include "dfm/config/merge.h"

#include <fmt/format.h>

#include <algorithm>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/config/text.h"

namespace dfm::config {
namespace {

constexpr std::string_view kCommandLine = "command line";

std::string section_part(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return std::string(name.substr(0, dot == std::string_view::npos ? 0 : dot));
}
std::string last_part(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return std::string(dot == std::string_view::npos ? name : name.substr(dot + 1));
}
bool starts_with_section(std::string_view name, std::string_view section) {
  return name.size() > section.size() && name.starts_with(section) && name[section.size()] == '.';
}

std::string place(const std::string& file, const Mark& mark) {
  return fmt::format("{}:{}:{}", file, mark.line, mark.column);
}

std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text.size() <= 120 ? text : text.substr(0, 117) + "...";
}

// The nearest last part among the options of `section`, as a full name.
std::string nearest_in_section(const Tree& tree, const std::string& section, const std::string& last) {
  std::vector<std::string> candidates;
  for (const Option& option : tree.options) {
    if (option.section == section) candidates.push_back(last_part(option.name));
  }
  const std::string nearest = nearest_name(last, candidates);
  if (nearest.empty()) return "";
  return section.empty() ? nearest : section + "." + nearest;
}

std::string nearest_option(const Tree& tree, const std::string& name) {
  const std::string section = section_part(name);
  const std::string last = last_part(name);
  if (tree.has_section(section) || section.empty()) {
    if (const std::string near = nearest_in_section(tree, section, last); !near.empty()) return near;
  }
  std::vector<std::string> sections;
  for (const SectionRow& row : tree.sections) sections.push_back(row.name);
  if (!section.empty() && !tree.has_section(section)) {
    if (const std::string near_section = nearest_name(section, sections); !near_section.empty()) {
      if (const std::string near = nearest_in_section(tree, near_section, last); !near.empty()) return near;
    }
  }
  for (const Option& option : tree.options) {
    if (last_part(option.name) == last) return option.name;
  }
  for (const std::string& candidate : sections) {
    if (const std::string near = nearest_in_section(tree, candidate, last); !near.empty()) return near;
  }
  return "";
}

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

// `accepted`: values separated by bars; "" accepts all.
bool is_accepted(std::string_view accepted, const Value& value) {
  if (accepted.empty()) return true;
  std::string text = value.kind == Value::Kind::kNull ? "null" : value.text;
  if (value.kind == Value::Kind::kList && value.items.empty()) text = "[]";
  bool truth = false;
  if (read(value, truth)) text = truth ? "true" : "false";
  double number = 0;
  const bool is_number = read(value, number);
  while (true) {
    const std::size_t bar = accepted.find('|');
    const std::string candidate(accepted.substr(0, bar));
    Value wanted;
    wanted.kind = Value::Kind::kScalar;
    wanted.text = candidate;
    double wanted_number = 0;
    if (candidate == text || (is_number && read(wanted, wanted_number) && wanted_number == number)) return true;
    if (bar == std::string_view::npos) return false;
    accepted.remove_prefix(bar + 1);
  }
}

}  // namespace

std::string unknown_name_error(const std::string& name, const std::string& kind, const std::string& want,
                               const std::string& where, const std::string& nearest) {
  std::string line = fmt::format("{}: got no such {}, want {}", one_line(name), kind, want);
  if (!where.empty()) line += " (" + where + ")";
  if (!nearest.empty()) line += "; hint: did you mean '" + nearest + "'";
  return line;
}

const ForeignName* ForeignTable::find(std::string_view name) const {
  for (const ForeignName& row : names) {
    if (row.name == name || starts_with_section(name, row.name)) return &row;
    if (row.name.starts_with("*.") && last_part(name) == row.name.substr(2)) return &row;
    if (row.name.ends_with('*') && name.starts_with(row.name.substr(0, row.name.size() - 1))) return &row;
  }
  return nullptr;
}

bool Merge::take_foreign(const std::string& name, const Value& value, const std::string& where) {
  const ForeignName* row = foreign_ == nullptr ? nullptr : foreign_->find(name);
  if (row == nullptr) return false;
  if (!is_accepted(row->accepted, value)) {
    std::string want;
    for (const char c : row->accepted) {
      if (c == '|') {
        want += " or ";
      } else {
        want += c;
      }
    }
    errors_.push_back(
        fmt::format("{}: got {}, want {}: {} ({})", one_line(name), value.describe(), want, row->reason, where));
    return true;
  }
  if (std::find(foreign_names_.begin(), foreign_names_.end(), name) == foreign_names_.end()) {
    foreign_names_.push_back(name);
    foreign_rows_.push_back(row);
  }
  return true;
}

std::string Merge::foreign_warning() const {
  if (foreign_names_.empty()) return "";
  std::vector<std::string> groups;
  std::vector<bool> is_done(foreign_names_.size(), false);
  for (std::size_t i = 0; i < foreign_names_.size(); ++i) {
    if (is_done[i]) continue;
    std::string group;
    for (std::size_t j = i; j < foreign_names_.size(); ++j) {
      if (foreign_rows_[j]->reason != foreign_rows_[i]->reason) continue;
      is_done[j] = true;
      group += (group.empty() ? "" : ", ") + one_line(foreign_names_[j]);
    }
    groups.push_back(fmt::format("{} ({})", group, foreign_rows_[i]->reason));
  }
  std::string text = "options of Megatron-Bridge without effect here: ";
  for (std::size_t i = 0; i < groups.size(); ++i) text += (i == 0 ? "" : "; ") + groups[i];
  return text;
}

void Merge::unknown(const Tree& tree, const std::string& name, const std::string& where) {
  const std::string section = section_part(name);
  const std::string nearest = nearest_option(tree, name);
  std::vector<std::string> names;
  if (tree.has_section(section)) {
    for (const Option& option : tree.options) {
      if (option.section == section) names.push_back(last_part(option.name));
    }
    const std::string want = nearest.empty() ? "one of " + join(names) : "one of the section's";
    errors_.push_back(unknown_name_error(name, "option", want, where, nearest));
    return;
  }
  for (const SectionRow& row : tree.sections) names.push_back(row.name);
  errors_.push_back(
      unknown_name_error(name, "option", "section.option, the section one of " + join(names), where, nearest));
}

void Merge::value(const Tree& tree, const std::string& name, const Value& value, const std::string& where,
                  const std::string& label) {
  const Option* option = tree.find(name);
  if (option == nullptr) {
    unknown(tree, name, where);
    return;
  }
  if (value.kind == Value::Kind::kScalar && value.text.starts_with("${")) {
    errors_.push_back(fmt::format("{}: got {}, want {} ({}); hint: references are not resolved, write the value itself",
                                  label.empty() ? name : label, value.describe(), option->type, where));
    failed_options_.push_back(name);
    return;
  }
  if (!option->set(value)) {
    errors_.push_back(
        fmt::format("{}: got {}, want {} ({})", label.empty() ? name : label, value.describe(), option->type, where));
    failed_options_.push_back(name);
    return;
  }
  std::erase(failed_options_, name);
  origins_[name] = where;
}

void Merge::assign(const Tree& tree, const std::string& given_name, const Value& given, const std::string& where) {
  std::string name = given_name;
  if (foreign_ != nullptr) {
    for (const AliasName& alias : foreign_->aliases) {
      if (alias.name == name) name = alias.meant;
    }
  }
  if (tree.find(name) == nullptr && take_foreign(name, given, where)) return;
  value(tree, name, given, where, given_name);
}

void Merge::walk(const Tree& tree, const Value& map, const std::string& prefix, const std::string& file,
                 std::map<std::string, std::string>& seen) {
  for (const Value::Entry& entry : map.entries) {
    const std::string name = prefix + entry.key;
    const std::string key_place = place(file, entry.mark);
    const auto [first, is_new] = seen.emplace(name, key_place);
    if (!is_new) {
      errors_.push_back(fmt::format("{}: got a second time, want once ({}); hint: it stands at {} already",
                                    one_line(name), key_place, first->second));
      continue;
    }
    if (tree.has_section(name)) {
      if (entry.value.kind == Value::Kind::kMap) {
        walk(tree, entry.value, name + ".", file, seen);
      } else if (entry.value.kind != Value::Kind::kNull) {
        errors_.push_back(fmt::format("{}: got {}, want a map of options ({})", name, entry.value.describe(),
                                      place(file, entry.value.mark)));
      }
      continue;
    }
    const bool is_option = tree.find(name) != nullptr;
    const bool is_foreign = !is_option && foreign_ != nullptr && foreign_->find(name) != nullptr;
    if (!is_option && !is_foreign && prefix.empty() && entry.value.kind == Value::Kind::kMap) {
      std::vector<std::string> sections;
      for (const SectionRow& row : tree.sections) sections.push_back(row.name);
      errors_.push_back(
          unknown_name_error(name, "section", "one of " + join(sections), key_place, nearest_name(name, sections)));
      continue;
    }
    assign(tree, name, entry.value, is_option ? place(file, entry.value.mark) : key_place);
  }
}

void Merge::yaml(const Tree& tree, std::string_view text, const std::string& where) {
  try {
    const Value root = parse_yaml(text, where);
    std::map<std::string, std::string> seen;
    if (root.kind == Value::Kind::kMap) {
      walk(tree, root, "", where, seen);
    } else if (root.kind != Value::Kind::kNull) {
      errors_.push_back(
          fmt::format("{}: got {}, want a map of sections ({})", where, root.describe(), place(where, root.mark)));
    }
  } catch (const ConfigError& error) {
    errors_.push_back(error.what());
  }
}

void Merge::override_value(const Tree& tree, std::string_view text) {
  const std::size_t equals = text.find('=');
  const std::string where(kCommandLine);
  if (text.starts_with('~')) {
    errors_.push_back(
        fmt::format("{}: got a removal, want section.option=value ({}); hint: give the value that you want",
                    one_line(std::string(text)), where));
    return;
  }
  while (text.starts_with('+')) text.remove_prefix(1);
  if (equals == std::string_view::npos || text.find('=') == 0 || text.empty()) {
    const std::string nearest = nearest_option(tree, std::string(text));
    errors_.push_back(fmt::format("{}: got no value, want section.option=value ({}){}", one_line(std::string(text)),
                                  where, nearest.empty() ? "" : "; hint: did you mean '" + nearest + "=...'"));
    return;
  }
  const std::size_t split = text.find('=');
  try {
    assign(tree, std::string(text.substr(0, split)), parse_argument(text.substr(split + 1)), where);
  } catch (const ConfigError& error) {
    errors_.push_back(fmt::format("{}: {}", text.substr(0, split), error.what()));
  }
}

void Merge::mark_changed(const Tree& tree, const Values& before, const std::string& where) {
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (tree.options[i].text() != before[i].second) origins_[before[i].first] = where;
  }
}

void Merge::check(const Tree& tree, bool flags) {
  const auto label = [&](const std::string& name) { return flags ? flag_name(name) : name; };
  const auto origin = [&](const std::string& name) {
    const auto found = origins_.find(name);
    return found == origins_.end() ? std::string("default") : found->second;
  };
  const auto has_failed = [&](const std::string& name) {
    return std::find(failed_options_.begin(), failed_options_.end(), name) != failed_options_.end();
  };
  for (const Option& option : tree.options) {
    if (has_failed(option.name)) continue;
    const char* want = option.check_problem();
    if (want == nullptr) continue;
    failed_options_.push_back(option.name);
    if (option.is_required && !origins_.contains(option.name)) {
      errors_.push_back(fmt::format("{}: got no value, want one; hint: {}", label(option.name), option.help));
    } else {
      errors_.push_back(
          fmt::format("{}: got {}, want {} ({})", label(option.name), option.text(), want, origin(option.name)));
    }
  }
  // Rules may compute with values that failed (divide by zero heads), so they run only on values that are sound alone.
  if (!failed_options_.empty()) return;
  Problems problems;
  for (const auto& rule : tree.rules) rule(problems);
  for (const Problem& problem : problems) {
    std::string line = fmt::format("{}: got {}, want {} ({})", label(problem.option), problem.got, problem.want,
                                   origin(problem.option));
    if (!problem.hint.empty()) line += "; hint: " + problem.hint;
    errors_.push_back(line);
  }
}

void Merge::finish() const {
  if (errors_.empty()) return;
  std::string text;
  for (const std::string& line : errors_) text += (text.empty() ? "" : "\n") + line;
  throw ConfigError("{}", text);
}

}  // namespace dfm::config
