#include "dfm/formats/nv_meta.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::size_t kMaxNames = 1 << 20;
constexpr std::uintmax_t kMaxFileBytes = 64 << 20;
constexpr const char* kFolder = ".nv-meta";

// Plain where every YAML reader takes it as text, else in double quotes.
std::string yaml_text(const std::string& text) {
  const auto is_plain = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '/' || c == '-';
  };
  if (text.find_first_of("{}\n") != std::string::npos) {
    throw DataError("shard {}: got a name with braces or line ends, want none", printable(text));
  }
  if (!text.empty() && std::isalpha(static_cast<unsigned char>(text[0])) != 0 &&
      std::all_of(text.begin(), text.end(), is_plain) && text.find('.') != std::string::npos) {
    return text;
  }
  return nlohmann::json(text).dump();
}

std::string yaml_list(const std::vector<std::string>& items, const std::string& indent) {
  if (items.empty()) return " []\n";
  std::string out = "\n";
  for (const std::string& item : items) out += indent + "- " + yaml_text(item) + "\n";
  return out;
}

YAML::Node load_yaml(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::file_size(path, ignored) > kMaxFileBytes) {
    throw DataError("{}: got a file above {} bytes, want a short one", path.string(), kMaxFileBytes);
  }
  try {
    return YAML::Load(read_text_file(path));
  } catch (const YAML::Exception& error) {
    throw DataError("{}: got {}, want YAML (line {})", path.string(), printable(error.msg), error.mark.line + 1);
  }
}

void check_shard(const std::filesystem::path& path, const std::string& shard) {
  const std::filesystem::path relative(shard);
  const bool climbs = std::find(relative.begin(), relative.end(), "..") != relative.end();
  if (shard.empty() || relative.is_absolute() || climbs) {
    throw DataError("{}: got shard '{}', want a path inside the data set's folder", path.string(), printable(shard));
  }
}

std::vector<std::string> names_of(const std::filesystem::path& path, const YAML::Node& node) {
  std::vector<std::string> names;
  if (!node || node.IsNull()) return names;
  if (!node.IsSequence()) throw DataError("{}: got no list of shards, want one", path.string());
  for (const YAML::Node& item : node) {
    if (!item.IsScalar()) throw DataError("{}: got a shard that is no text", path.string());
    for (std::string& name : expand_braces(item.Scalar())) {
      check_shard(path, name);
      names.push_back(std::move(name));
    }
    if (names.size() > kMaxNames) throw DataError("{}: got more than {} shards", path.string(), kMaxNames);
  }
  return names;
}

std::vector<std::pair<std::string, std::uint64_t>> counts_of_json(const std::filesystem::path& path) {
  std::vector<std::pair<std::string, std::uint64_t>> counts;
  const auto root = nlohmann::json::parse(read_text_file(path), nullptr, false);
  const auto found = root.is_object() ? root.find("shard_counts") : root.end();
  if (found == root.end() || !found->is_object()) {
    throw DataError("{}: got no shard_counts, want a map of shards to counts", path.string());
  }
  for (const auto& [shard, count] : found->items()) {
    check_shard(path, shard);
    if (!count.is_number_unsigned()) throw DataError("{}: got a count that is no number", path.string());
    counts.emplace_back(shard, count.get<std::uint64_t>());
  }
  return counts;
}

std::vector<std::pair<std::string, std::uint64_t>> counts_of_yaml(const std::filesystem::path& path) {
  std::vector<std::pair<std::string, std::uint64_t>> counts;
  const YAML::Node root = load_yaml(path);
  const YAML::Node map = root.IsMap() ? root["shard_counts"] : YAML::Node(YAML::NodeType::Undefined);
  if (!map || !map.IsMap()) throw DataError("{}: got no shard_counts, want a map of shards to counts", path.string());
  for (const auto& item : map) {
    std::uint64_t count = 0;
    if (!item.first.IsScalar() || !YAML::convert<std::uint64_t>::decode(item.second, count)) {
      throw DataError("{}: got a count that is no number", path.string());
    }
    check_shard(path, item.first.Scalar());
    counts.emplace_back(item.first.Scalar(), count);
  }
  return counts;
}

// `a..b` or `a..b..step`, numbers (zero-padded when an end is) or single letters; nothing when it is neither.
std::vector<std::string> expand_range(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t first = 0;
  for (std::size_t dots = text.find(".."); dots != std::string::npos; dots = text.find("..", first)) {
    parts.push_back(text.substr(first, dots - first));
    first = dots + 2;
  }
  parts.push_back(text.substr(first));
  const auto is_number = [](const std::string& part) {
    const std::size_t sign = part.starts_with('-') ? 1 : 0;
    return part.size() > sign && part.size() < 18 &&
           std::all_of(part.begin() + static_cast<std::ptrdiff_t>(sign), part.end(),
                       [](unsigned char c) { return std::isdigit(c) != 0; });
  };
  if (parts.size() < 2 || parts.size() > 3 || (parts.size() == 3 && !is_number(parts[2]))) return {};
  const bool numeric = is_number(parts[0]) && is_number(parts[1]);
  const auto is_letter = [](const std::string& p) {
    return p.size() == 1 && std::isalpha(static_cast<unsigned char>(p[0])) != 0;
  };
  if (!numeric && !(is_letter(parts[0]) && is_letter(parts[1]))) return {};
  const std::int64_t begin = numeric ? std::stoll(parts[0]) : parts[0][0],
                     end = numeric ? std::stoll(parts[1]) : parts[1][0];
  const std::int64_t step = std::max<std::int64_t>(parts.size() == 3 ? std::abs(std::stoll(parts[2])) : 1, 1);
  const auto is_padded = [](const std::string& p) { return p.size() > 1 && (p[0] == '0' || p.starts_with("-0")); };
  const std::size_t width =
      numeric && (is_padded(parts[0]) || is_padded(parts[1])) ? std::max(parts[0].size(), parts[1].size()) : 1;
  const auto count = static_cast<std::uint64_t>(std::abs(end - begin) / step) + 1;
  if (count > kMaxNames)
    throw DataError("shards {{{}}}: got {} names, want at most {}", printable(text), count, kMaxNames);
  std::vector<std::string> result;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::int64_t value = begin + (begin <= end ? 1 : -1) * step * static_cast<std::int64_t>(i);
    result.push_back(numeric ? fmt::format("{:0{}}", value, width) : std::string(1, static_cast<char>(value)));
  }
  return result;
}

// The alternatives of a brace group's inside: split at commas that are in no inner group.
std::vector<std::string> expand_group(const std::string& inside) {
  std::vector<std::string> items(1);
  int depth = 0;
  for (const char c : inside) {
    if (c == ',' && depth == 0) {
      items.emplace_back();
      continue;
    }
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    items.back().push_back(c);
  }
  if (items.size() == 1) return expand_range(inside);
  std::vector<std::string> result;
  for (const std::string& item : items) {
    for (std::string& name : expand_braces(item)) result.push_back(std::move(name));
  }
  return result;
}

}  // namespace

bool NvMeta::excludes(const std::string& shard) const {
  return std::find(exclude.begin(), exclude.end(), shard) != exclude.end();
}
bool NvMeta::excludes(const std::string& shard, const std::string& key) const {
  return excludes(shard) || excludes(shard + "/" + key);
}

void write_nv_meta(const std::filesystem::path& dataset, const NvMeta& meta) {
  const std::filesystem::path folder = dataset / kFolder;
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) throw DataError("{}: cannot create the folder: {}", folder.string(), failure.message());
  std::string info = meta.shard_counts.empty() ? "shard_counts: {}\n" : "shard_counts:\n";
  nlohmann::ordered_json counts = nlohmann::ordered_json::object();
  for (const auto& [shard, count] : meta.shard_counts) {
    info += fmt::format("  {}: {}\n", yaml_text(shard), count);
    counts[shard] = count;
  }
  nlohmann::ordered_json info_json;
  info_json["energon_version"] = "7.4.1";  // whose layout this is
  info_json["shard_counts"] = counts;
  std::string split = "exclude:" + yaml_list(meta.exclude, "") + "split_parts:\n";
  for (const auto& [name, shards] : meta.splits) split += fmt::format("  {}:{}", name, yaml_list(shards, "  "));
  write_file_atomically(folder / ".info.yaml", info);
  write_file_atomically(folder / ".info.json", info_json.dump(2));
  write_file_atomically(folder / "split.yaml", split);
  write_file_atomically(folder / "dataset.yaml", "__module__: megatron.energon\n__class__: CrudeWebdataset\n");
}

std::optional<NvMeta> read_nv_meta(const std::filesystem::path& dataset) {
  const std::filesystem::path folder = dataset / kFolder, split = folder / "split.yaml";
  if (!std::filesystem::exists(split)) return std::nullopt;
  NvMeta meta;
  const YAML::Node root = load_yaml(split);
  const YAML::Node parts = root.IsMap() ? root["split_parts"] : YAML::Node(YAML::NodeType::Undefined);
  if (!parts || !parts.IsMap())
    throw DataError("{}: got no split_parts, want a map of splits to shards", split.string());
  for (const auto& part : parts) {
    if (!part.first.IsScalar()) throw DataError("{}: got a split whose name is no text", split.string());
    meta.splits[part.first.Scalar()] = names_of(split, part.second);
  }
  meta.exclude = names_of(split, root["exclude"]);
  if (std::filesystem::exists(folder / ".info.json")) {
    meta.shard_counts = counts_of_json(folder / ".info.json");
  } else if (std::filesystem::exists(folder / ".info.yaml")) {
    meta.shard_counts = counts_of_yaml(folder / ".info.yaml");
  }
  std::sort(meta.shard_counts.begin(), meta.shard_counts.end());
  return meta;
}

std::vector<std::string> expand_braces(const std::string& pattern) {
  constexpr std::size_t kMaxPattern = 4096;
  if (pattern.size() > kMaxPattern)
    throw DataError("shard name: got {} bytes, want at most {}", pattern.size(), kMaxPattern);
  for (std::size_t open = pattern.find('{'); open != std::string::npos; open = pattern.find('{', open + 1)) {
    int depth = 0;
    std::size_t close = open;
    for (; close < pattern.size(); ++close) {
      depth += pattern[close] == '{' ? 1 : pattern[close] == '}' ? -1 : 0;
      if (depth == 0) break;
    }
    if (close == pattern.size()) continue;
    const std::vector<std::string> middles = expand_group(pattern.substr(open + 1, close - open - 1));
    if (middles.empty()) continue;  // `{x}` is text
    const std::vector<std::string> tails = expand_braces(pattern.substr(close + 1));
    if (middles.size() * tails.size() > kMaxNames) {
      throw DataError("shards {}: got {} names, want at most {}", printable(pattern), middles.size() * tails.size(),
                      kMaxNames);
    }
    std::vector<std::string> result;
    for (const std::string& middle : middles) {
      for (const std::string& tail : tails) result.push_back(pattern.substr(0, open) + middle + tail);
    }
    return result;
  }
  return {pattern};
}

}  // namespace dfm::formats
