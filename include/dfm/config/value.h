#pragma once
// A value as YAML or the command line gives it, before its type is known, and the conversion to and from the types that
// an option may have (schema.h). No third-party header: the YAML library stays in src/config.
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dfm/config/schema.h"

namespace dfm::config {

// Where a value stands: line and column from 1; 0 when it is not from a file.
struct Mark {
  int line = 0;
  int column = 0;
};

struct Value {
  enum class Kind { kNull, kScalar, kList, kMap };
  struct Entry;

  Kind kind = Kind::kNull;
  std::string text;            // kScalar
  std::vector<Value> items;    // kList
  std::vector<Entry> entries;  // kMap, in the order of the file
  Mark mark;

  // For messages: 'six', null, a list, a map.
  [[nodiscard]] std::string describe() const;
};
struct Value::Entry {
  std::string key;
  Mark mark;
  Value value;
};

// One YAML document. `where` names it in messages. ConfigError for a syntax error, an anchor cycle, more than 32
// levels, more than 100,000 nodes or more than 1 MiB: hostile files cost little and never crash.
Value parse_yaml(std::string_view text, const std::string& where);
// The right side of `name=value` or of a flag: null, a flow list, a quoted string, else the text as it stands.
Value parse_argument(std::string_view text);

// read: false when the value is not of the type (the target then keeps its value). write: YAML text that reads back.
// type_text: what is wanted, "an integer".
bool read(const Value& value, bool& out);
bool read(const Value& value, std::int64_t& out);
bool read(const Value& value, std::uint64_t& out);
bool read(const Value& value, double& out);
bool read(const Value& value, std::string& out);
bool read(const Value& value, std::filesystem::path& out);  // null: the empty path
std::string write(bool value);
std::string write(std::int64_t value);
std::string write(std::uint64_t value);
std::string write(double value);  // the shortest text that reads back to the same bits
std::string write(const std::string& value);
std::string write(const std::filesystem::path& value);
bool is_null_text(std::string_view text);

template <typename T>
struct TypeText;
template <>
struct TypeText<bool> {
  static std::string text() { return "true or false"; }
};
template <>
struct TypeText<std::int64_t> {
  static std::string text() { return "an integer"; }
};
template <>
struct TypeText<std::uint64_t> {
  static std::string text() { return "an integer >= 0"; }
};
template <>
struct TypeText<double> {
  static std::string text() { return "a number"; }
};
template <>
struct TypeText<std::string> {
  static std::string text() { return "a string"; }
};
template <>
struct TypeText<std::filesystem::path> {
  static std::string text() { return "a path"; }
};

// Null stands for the name `none` of an enum that has one, as in Megatron-Bridge's files.
template <NamedEnum T>
bool read(const Value& value, T& out) {
  const std::string_view wanted = value.kind == Value::Kind::kNull ? "none" : std::string_view(value.text);
  if (value.kind == Value::Kind::kList || value.kind == Value::Kind::kMap) return false;
  for (const auto& [candidate, name] : enum_names(T{})) {
    if (name != wanted) continue;
    out = candidate;
    return true;
  }
  return false;
}
template <NamedEnum T>
std::string write(T value) {
  return std::string(enum_name(value));
}
template <NamedEnum T>
struct TypeText<T> {
  static std::string text() {
    std::string names;
    for (const auto& [candidate, name] : enum_names(T{})) {
      names += (names.empty() ? "one of " : ", ") + std::string(name);
    }
    return names;
  }
};

template <typename T>
bool read(const Value& value, std::optional<T>& out) {
  if (value.kind == Value::Kind::kNull) {
    out.reset();
    return true;
  }
  T inner{};
  if (!read(value, inner)) return false;
  out = std::move(inner);
  return true;
}
template <typename T>
std::string write(const std::optional<T>& value) {
  return value ? write(*value) : "null";
}
template <typename T>
struct TypeText<std::optional<T>> {
  static std::string text() {
    std::string text = TypeText<T>::text();
    text.append(" or null");  // operator+ trips a false warning of GCC 12
    return text;
  }
};

template <typename T>
bool read(const Value& value, std::vector<T>& out) {
  if (value.kind != Value::Kind::kList) return false;
  std::vector<T> list(value.items.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (!read(value.items[i], list[i])) return false;
  }
  out = std::move(list);
  return true;
}
template <typename T>
std::string write(const std::vector<T>& value) {
  std::string text = "[";
  for (const T& item : value) text += (text.size() == 1 ? "" : ", ") + write(item);
  return text + "]";
}
template <typename T>
struct TypeText<std::vector<T>> {
  static std::string text() { return "a list, each " + TypeText<T>::text(); }
};

}  // namespace dfm::config
