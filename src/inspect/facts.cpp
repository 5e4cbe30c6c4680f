#include "inspect/facts.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/progress.h"

namespace dfm::inspect {
namespace {

std::string words_of(std::string key) {
  if (key.find('.') != std::string::npos) return key;  // the name of an option
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

// 12345678 -> "12,345,678"
std::string with_commas(std::int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    const std::size_t rest = digits.size() - i;
    if (i > 0 && digits[i - 1] != '-' && rest % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

bool is_scalar(const Facts& value) { return !value.is_structured(); }
bool is_table(const Facts& value) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(), [](const Facts& row) { return row.is_object(); });
}
bool is_short_list(const Facts& value) {  // a shape, a few numbers or names
  return value.is_array() &&
         std::all_of(value.begin(), value.end(), [](const Facts& item) { return item.is_number(); });
}

// A few numbers with names, such as a spread.
bool is_small(const Facts& value) {
  return value.is_object() && !value.empty() && value.size() <= 4 &&
         std::all_of(value.begin(), value.end(), [](const Facts& item) { return item.is_number(); });
}
bool is_line(const Facts& value) { return is_scalar(value) || is_short_list(value) || is_small(value); }

std::string scalar_text(const std::string& key, const Facts& value) {
  if (value.is_null()) return "none";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_integer()) {
    const auto number = value.get<std::int64_t>();
    if (key.ends_with("bytes") && number >= 0) return format_bytes(static_cast<std::uint64_t>(number));
    return key.ends_with("seed") ? std::to_string(number) : with_commas(number);
  }
  if (value.is_number()) return fmt::format("{:.4g}", value.get<double>());
  std::vector<std::string> items;
  if (value.is_object()) {
    for (const auto& [name, item] : value.items()) items.push_back(words_of(name) + " " + scalar_text(name, item));
    return fmt::format("{}", fmt::join(items, ", "));
  }
  for (const Facts& item : value) {  // sizes of a shape stay plain
    items.push_back(item.is_number_integer() ? item.dump() : scalar_text(key, item));
  }
  return fmt::format("[{}]", fmt::join(items, ", "));
}

bool is_right_aligned(const Facts& value) { return value.is_number(); }

std::string table_text(const Facts& rows, const std::string& indent) {
  std::vector<std::string> keys;
  for (const Facts& row : rows) {
    for (const auto& [key, value] : row.items()) {
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    }
  }
  std::vector<std::size_t> widths;
  std::vector<char> is_right;
  for (const std::string& key : keys) {
    std::size_t width = words_of(key).size();
    bool right = true;
    for (const Facts& row : rows) {
      if (!row.contains(key)) continue;
      width = std::max(width, scalar_text(key, row[key]).size());
      right = right && is_right_aligned(row[key]);
    }
    widths.push_back(width);
    is_right.push_back(right ? 1 : 0);
  }
  const auto line_of = [&](const auto& cell) {
    std::string line;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      line += i == 0 ? indent : "  ";
      line += is_right[i] != 0 ? fmt::format("{:>{}}", cell(keys[i]), widths[i])
                               : fmt::format("{:<{}}", cell(keys[i]), widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    return line + "\n";
  };
  std::string text = line_of(words_of);
  for (const Facts& row : rows) {
    text += line_of([&](const std::string& key) { return row.contains(key) ? scalar_text(key, row[key]) : ""; });
  }
  return text;
}

// Words of `value` after `left`, wrapped.
std::string wrapped(const std::string& left, const std::string& value, std::size_t width) {
  std::string text = left;
  std::size_t used = left.size(), at = 0;
  while (at < value.size()) {
    const std::size_t end = std::min(value.find(' ', at), value.size());
    const std::size_t length = end - at;
    if (used > left.size() && used + 1 + length > width) {
      text += '\n';
      text.append(left.size(), ' ');
      used = left.size();
    } else if (used > left.size()) {
      text += ' ';
      ++used;
    }
    text += value.substr(at, length);
    used += length;
    at = end + 1;
  }
  text.erase(text.find_last_not_of(' ') + 1);
  return text + "\n";
}

std::string object_text(const Facts& facts, const std::string& indent, std::size_t width) {
  std::size_t name_width = 0;
  for (const auto& [key, value] : facts.items()) {
    if (is_line(value)) name_width = std::max(name_width, words_of(key).size());
  }
  // What fits a line comes first.
  std::string text;
  for (const auto& [key, value] : facts.items()) {
    if (!is_line(value)) continue;
    std::string shown = scalar_text(key, value);
    if (value.is_array() && key != "shape") shown = shown.substr(1, shown.size() - 2);
    text += wrapped(fmt::format("{}{:<{}}  ", indent, words_of(key), name_width), shown, width);
  }
  for (const auto& [key, value] : facts.items()) {
    if (is_line(value) || value.empty()) continue;
    text += fmt::format("{}{}:\n", indent, words_of(key));
    if (is_table(value)) {
      text += table_text(value, indent + "  ");
    } else if (value.is_array()) {
      for (const Facts& item : value) text += wrapped(indent + "  - ", scalar_text(key, item), width);
    } else {
      text += object_text(value, indent + "  ", width);
    }
  }
  return text;
}

}  // namespace

std::string to_text(const Facts& facts, std::size_t width) {
  Facts rest = facts;
  std::string title;
  for (const char* key : {"path", "kind", "status"}) {
    if (!rest.contains(key)) continue;
    title += (title.empty() ? "" : title.find(": ") == std::string::npos ? ": " : ", ") + rest[key].get<std::string>();
    rest.erase(key);
  }
  return (title.empty() ? "" : title + "\n") + object_text(rest, "  ", width);
}

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "fp32";
    case at::kDouble:
      return "fp64";
    case at::kHalf:
      return "fp16";
    case at::kBFloat16:
      return "bf16";
    case at::kLong:
      return "int64";
    case at::kInt:
      return "int32";
    case at::kShort:
      return "int16";
    case at::kChar:
      return "int8";
    case at::kByte:
      return "uint8";
    case at::kBool:
      return "bool";
    default:
      return at::toString(dtype);
  }
}

Facts describe_tensor(const at::Tensor& tensor) {
  Facts facts;
  facts["shape"] = tensor.sizes().vec();
  facts["dtype"] = dtype_name(tensor.scalar_type());
  if (tensor.numel() == 0 || tensor.is_complex()) return facts;
  const at::Tensor values = tensor.to(at::kDouble);
  facts["min"] = values.min().item<double>();
  facts["max"] = values.max().item<double>();
  facts["mean"] = values.mean().item<double>();
  facts["std"] = values.std(/*unbiased=*/false).item<double>();
  const std::int64_t num_bad = values.numel() - at::isfinite(values).sum().item<std::int64_t>();
  if (num_bad > 0) facts["not_finite"] = num_bad;
  return facts;
}

Facts describe_spread(std::vector<std::int64_t> values) {
  std::sort(values.begin(), values.end());
  return {{"min", values.front()}, {"median", values[values.size() / 2]}, {"max", values.back()}};
}

std::string one_line(const std::string& text, std::size_t most) {
  std::string line;
  for (const char c : text) line += static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? ' ' : c;
  if (line.size() <= most) return line;
  std::size_t end = most;
  while (end > 0 && (static_cast<unsigned char>(line[end]) & 0xC0) == 0x80) --end;  // not within a character
  return line.substr(0, end) + "...";
}

}  // namespace dfm::inspect
