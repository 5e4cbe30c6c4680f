#include "dfm/config/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <system_error>

namespace dfm::config {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

// Digits may be grouped as in Python and YAML 1.1: 15_360. from_chars takes no leading plus.
std::optional<std::string> number_text(const Value& value) {
  if (value.kind != Value::Kind::kScalar || value.text.empty()) return std::nullopt;
  std::string text = value.text;
  if (text.front() == '+') text.erase(0, 1);
  if (text.empty() || text.front() == '+' || text.front() == '_' || text.back() == '_') return std::nullopt;
  std::erase(text, '_');
  return text;
}

template <typename T>
bool read_number(const Value& value, T& out) {
  const std::optional<std::string> text = number_text(value);
  if (!text) return false;
  T number{};
  const char* end = text->data() + text->size();
  const auto [stopped, error] = std::from_chars(text->data(), end, number);
  if (error != std::errc{} || stopped != end) return false;
  out = number;
  return true;
}

bool is_plain_text(const std::string& text) {
  if (text.empty() || is_null_text(text) || text.back() == ':') return false;
  const auto is_word = [](unsigned char c) { return std::isalnum(c) != 0 || c == '_' || c == '/'; };
  if (!is_word(static_cast<unsigned char>(text.front())) && text.front() != '.') return false;
  const bool all_plain = std::all_of(text.begin(), text.end(), [&](unsigned char c) {
    return is_word(c) || c == '.' || c == '-' || c == '+' || c == ':' || c == '=' || c == '@';
  });
  if (!all_plain) return false;
  // What another YAML reader would take for a number or a truth value is quoted.
  Value value;
  value.kind = Value::Kind::kScalar;
  value.text = text;
  double number = 0;
  bool truth = false;
  return !read_number(value, number) && !read(value, truth) && std::isdigit(static_cast<unsigned char>(text[0])) == 0;
}

}  // namespace

bool is_null_text(std::string_view text) {
  return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

std::string Value::describe() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a map";
    case Kind::kScalar:
      break;
  }
  std::string shown = text.size() <= 80 ? text : text.substr(0, 77) + "...";
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';  // a message is one line
  }
  return "'" + shown + "'";
}

bool read(const Value& value, bool& out) {
  if (value.kind != Value::Kind::kScalar) return false;
  const std::string text = lower_case(value.text);
  const bool is_true = text == "true" || text == "yes" || text == "on";
  if (!is_true && text != "false" && text != "no" && text != "off") return false;
  out = is_true;
  return true;
}
bool read(const Value& value, std::int64_t& out) { return read_number(value, out); }
bool read(const Value& value, std::uint64_t& out) { return read_number(value, out); }
bool read(const Value& value, double& out) {
  double number = 0;
  if (!read_number(value, number) || !std::isfinite(number)) return false;
  out = number;
  return true;
}
bool read(const Value& value, std::string& out) {
  if (value.kind == Value::Kind::kNull) {
    out.clear();
    return true;
  }
  if (value.kind != Value::Kind::kScalar) return false;
  out = value.text;
  return true;
}
bool read(const Value& value, std::filesystem::path& out) {
  std::string text;
  if (!read(value, text) || text.find('\0') != std::string::npos) return false;
  out = text;
  return true;
}

std::string write(bool value) { return value ? "true" : "false"; }
std::string write(std::int64_t value) { return std::to_string(value); }
std::string write(std::uint64_t value) { return std::to_string(value); }
std::string write(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  std::array<char, 40> buffer{};
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  std::string text(buffer.data(), result.ptr);
  // YAML 1.1 readers (PyYAML) take 9e-05 for a string and 1 for an integer.
  if (text.find('.') == std::string::npos) text.insert(std::min(text.find('e'), text.size()), ".0");
  return text;
}
std::string write(const std::string& value) {
  if (is_plain_text(value)) return value;
  std::string text = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (c == '\n') {
      text += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      text += fmt::format("\\x{:02x}", byte);
    } else {
      text += c;
    }
  }
  return text + "\"";
}
std::string write(const std::filesystem::path& value) { return value.empty() ? "null" : write(value.string()); }

}  // namespace dfm::config
