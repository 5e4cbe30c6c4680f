#pragma once
// The visitor over fields(): a struct seen as a flat list of options with dotted names. Everything else (YAML,
// overrides, flags, help, docs, validation) works on this list and knows no type.
//
//   train::TrainConfig config;
//   config::Tree tree = config::tree_of(config);   // refers to `config`, which must outlive it
//   config::to_yaml(config, config::YamlStyle::kMinimal);
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dfm/config/schema.h"
#include "dfm/config/value.h"

namespace dfm::config {

struct Option {
  std::string name;     // "optimizer.lr"
  std::string section;  // "optimizer"; "" at the top
  std::string help;
  std::string type;  // "a number"
  bool is_switch = false;
  bool is_required = false;                    // its default fails its check: must be given
  std::function<std::string()> text;           // the value as YAML text
  std::function<bool(const Value&)> set;       // false: not of the type, nothing changed
  std::function<const char*()> check_problem;  // nullptr, or what is wanted
};
struct SectionRow {
  std::string name;
  std::string help;
};
struct Tree {
  std::vector<SectionRow> sections;
  std::vector<Option> options;
  std::vector<std::function<void(Problems&)>> rules;  // the structs' check(), names already dotted

  [[nodiscard]] const Option* find(std::string_view name) const;
  [[nodiscard]] bool has_section(std::string_view name) const;
};

namespace detail {

struct AnyMember {
  template <typename T>
  operator T() const;  // NOLINT: only used in unevaluated code
};
template <typename T, typename... Members>
consteval std::size_t member_count() {
  if constexpr (requires { T{std::declval<Members>()..., AnyMember{}}; }) {
    return member_count<T, Members..., AnyMember>();
  } else {
    return sizeof...(Members);
  }
}

template <typename CheckType, typename T>
const char* apply_check(const CheckType&, const T& value) {
  return CheckType::problem(value);
}
template <typename CheckType, typename T>
const char* apply_check(const CheckType& check, const std::optional<T>& value) {
  return value ? apply_check(check, *value) : nullptr;
}

template <Section T>
void add_options(Tree& tree, T& object, const T& defaults, const std::string& prefix) {
  static_assert(member_count<T>() == std::tuple_size_v<decltype(T::fields())>,
                "every member of an option struct needs a row in fields()");
  const auto add = [&](const auto& field) {
    using Member = std::remove_reference_t<decltype(object.*(field.member))>;
    const std::string name = prefix + std::string(field.name);
    if constexpr (Section<Member>) {
      tree.sections.push_back({name, std::string(field.help)});
      add_options(tree, object.*(field.member), defaults.*(field.member), name + ".");
    } else {
      Member* member = &(object.*(field.member));
      const auto check = field.check;
      Option option;
      option.name = name;
      option.section = prefix.empty() ? "" : prefix.substr(0, prefix.size() - 1);
      option.help = field.help;
      option.type = TypeText<Member>::text();
      option.is_switch = std::is_same_v<Member, bool>;
      option.is_required = apply_check(check, defaults.*(field.member)) != nullptr;
      option.text = [member] { return write(*member); };
      option.set = [member](const Value& value) { return read(value, *member); };
      option.check_problem = [member, check] { return apply_check(check, *member); };
      tree.options.push_back(std::move(option));
    }
  };
  std::apply([&](const auto&... field) { (add(field), ...); }, T::fields());
  if constexpr (requires(const T& value, Problems& problems) { value.check(problems); }) {
    tree.rules.push_back([&object, prefix](Problems& problems) {
      const std::size_t first = problems.size();
      std::as_const(object).check(problems);
      for (std::size_t i = first; i < problems.size(); ++i) problems[i].option.insert(0, prefix);
    });
  }
}

}  // namespace detail

template <Section T>
Tree tree_of(T& object) {
  Tree tree;
  static const T defaults{};
  detail::add_options(tree, object, defaults, "");
  return tree;
}

// (dotted name, value as YAML text), in the order of declaration.
using Values = std::vector<std::pair<std::string, std::string>>;
Values list_values(const Tree& tree);
template <Section T>
Values list_values(const T& object) {
  T copy = object;
  return list_values(tree_of(copy));
}

enum class YamlStyle { kFull, kMinimal };  // kMinimal: only what differs from the default
// dotted name -> "recipe demo", "my.yaml:3:5", "command line"; a name that is missing has its default.
using Origins = std::map<std::string, std::string>;
// With `origins`, each value that is not the default's carries its origin as a comment.
std::string to_yaml(const Tree& tree, const Tree& defaults, YamlStyle style, const Origins* origins = nullptr);
template <Section T>
std::string to_yaml(const T& object, YamlStyle style, const Origins* origins = nullptr) {
  T copy = object;
  T defaults;
  return to_yaml(tree_of(copy), tree_of(defaults), style, origins);
}

}  // namespace dfm::config
