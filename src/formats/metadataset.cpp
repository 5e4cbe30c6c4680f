#include "dfm/formats/metadataset.h"

#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 1 << 20;
constexpr std::size_t kMaxParts = 4096;

using Names = std::vector<std::string>;

// Of a data set anywhere: they do not change which samples there are.
const Names kPassedOver = {"subflavors", "subflavor", "aux", "dataset_config", "shuffle_over_epochs_multiplier"};

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : file_(file) {}

  Metadataset read() const {
    const YAML::Node root = load();
    if (!root.IsMap()) throw DataError("{}: got no map, want a Metadataset (`splits: ...`)", file_.string());
    const std::string module = text_of(root["__module__"], "megatron.energon");
    const std::string name = text_of(root["__class__"], "Metadataset");
    const bool is_v2 = name == "MetadatasetV2";
    if (module.find("megatron.energon") != 0 || (!is_v2 && name != "Metadataset")) {
      throw DataError("{}: got class {}.{}, want megatron.energon's Metadataset or MetadatasetV2{}", file_.string(),
                      printable(module), printable(name),
                      file_.parent_path().filename() == ".nv-meta" ? "; hint: give the folder of the data set" : "");
    }
    check_keys(root, {"__module__", "__class__", "splits"}, "the Metadataset");
    const YAML::Node splits = root["splits"];
    if (!splits || !splits.IsMap()) fail(splits ? splits : root, "no map of splits", "`splits: {train: ...}`");
    Metadataset result;
    for (const auto& split : splits) {
      const std::string split_name = key_of(split.first);
      if (split.second.IsNull()) continue;
      if (!split.second.IsMap()) fail(split.second, "a split that is no map", "one");
      result[split_name] = is_v2 ? v2_split(split_name, split.second) : v1_split(split_name, split.second);
    }
    return result;
  }

 private:
  YAML::Node load() const {
    std::error_code ignored;
    if (std::filesystem::file_size(file_, ignored) > kMaxFileBytes && !ignored) {
      throw DataError("{}: got a file above {} bytes, want a short one", file_.string(), kMaxFileBytes);
    }
    try {
      return YAML::Load(read_text_file(file_));
    } catch (const YAML::Exception& error) {
      throw DataError("{}:{}: got {}, want YAML", file_.string(), error.mark.line + 1, printable(error.msg));
    }
  }

  std::string place(const YAML::Node& node) const { return fmt::format("{}:{}", file_.string(), node.Mark().line + 1); }

  [[noreturn]] void fail(const YAML::Node& node, const std::string& got, const std::string& want) const {
    throw DataError("{}: got {}, want {}", place(node), got, want);
  }

  static std::string text_of(const YAML::Node& node, const std::string& otherwise) {
    return node && node.IsScalar() ? node.Scalar() : otherwise;
  }

  std::string key_of(const YAML::Node& key) const {
    if (!key.IsScalar()) fail(key, "a key that is no text", "a name");
    return key.Scalar();
  }

  void check_keys(const YAML::Node& map, const Names& known, const std::string& what) const {
    for (const auto& item : map) {
      const std::string key = key_of(item.first);
      if (std::find(known.begin(), known.end(), key) != known.end()) continue;
      if (key == "join" || key == "joiner" || key == "concat" || key == "subset") {
        throw DataError("{}: got `{}` for {}, which dfm does not read; hint: prepare a data set that is so",
                        place(item.first), key, what);
      }
      throw DataError("{}: got the unknown key `{}` for {}, want one of {}", place(item.first), printable(key), what,
                      fmt::join(known, ", "));
    }
  }

  double share_of(const YAML::Node& item, const std::string& key) const {
    const YAML::Node node = item[key];
    if (!node) return 1;
    double share = 0;
    if (!node.IsScalar() || !YAML::convert<double>::decode(node, share) || !std::isfinite(share) || share <= 0) {
      fail(node, fmt::format("{} {}", key, node.IsScalar() ? printable(node.Scalar()) : "that is no number"),
           "a number above 0");
    }
    return share;
  }

  MetadatasetPart part(const YAML::Node& item, const std::string& share_key) const {
    if (!item.IsMap()) fail(item, "a data set that is no map", "`path: ...`");
    Names known = {"path", "split_part", "split_config"};
    known.insert(known.end(), kPassedOver.begin(), kPassedOver.end());
    if (!share_key.empty()) known.push_back(share_key);
    check_keys(item, known, "a data set");
    const YAML::Node path = item["path"];
    if (!path || !path.IsScalar() || path.Scalar().empty()) fail(item, "a data set without `path`", "one");
    if (path.Scalar().find("://") != std::string::npos) {
      fail(path, "the address " + printable(path.Scalar()), "a path of this machine");
    }
    const std::string split_file = text_of(item["split_config"], "split.yaml");
    if (split_file != "split.yaml") fail(item["split_config"], "split_config " + printable(split_file), "split.yaml");
    MetadatasetPart result;
    result.path = (file_.parent_path() / path.Scalar()).lexically_normal();
    if (!result.path.has_filename()) result.path = result.path.parent_path();
    if (const YAML::Node split = item["split_part"]; split && !split.IsNull()) {
      if (!split.IsScalar()) fail(split, "a split_part that is no text", "the name of a split");
      result.split_part = split.Scalar();
    }
    if (!share_key.empty()) result.share = share_of(item, share_key);
    result.place = place(path);
    return result;
  }

  MetadatasetSplit list(const std::string& split, const YAML::Node& items, MetadatasetMode mode) const {
    if (!items.IsSequence()) fail(items, "no list of data sets", "one");
    if (items.size() == 0) fail(items, fmt::format("no data set in split {}", printable(split)), "at least one");
    if (items.size() > kMaxParts) {
      fail(items, fmt::format("{} data sets", items.size()), fmt::format("at most {}", kMaxParts));
    }
    MetadatasetSplit result;
    result.mode = mode;
    for (const YAML::Node& item : items) {
      result.parts.push_back(part(item, mode == MetadatasetMode::kEpochized ? "repetitions" : "weight"));
    }
    return result;
  }

  MetadatasetSplit v1_split(const std::string& name, const YAML::Node& split) const {
    check_keys(split, {"datasets"}, "a split");
    const YAML::Node items = split["datasets"];
    if (!items) fail(split, fmt::format("split {} without `datasets`", printable(name)), "a list of data sets");
    return list(name, items, MetadatasetMode::kWeighted);
  }

  MetadatasetSplit v2_split(const std::string& name, const YAML::Node& split) const {
    if (const YAML::Node items = split["blend"]) {
      check_keys(split, {"blend"}, "a split");
      return list(name, items, MetadatasetMode::kWeighted);
    }
    if (const YAML::Node items = split["blend_epochized"]) {
      check_keys(split, {"blend_epochized"}, "a split");
      return list(name, items, MetadatasetMode::kEpochized);
    }
    MetadatasetSplit result;
    result.parts.push_back(part(split, ""));
    return result;
  }

  const std::filesystem::path& file_;
};

}  // namespace

Metadataset read_metadataset(const std::filesystem::path& file) {
  try {
    return Reader(file).read();
  } catch (const YAML::Exception& error) {
    throw DataError("{}:{}: got {}, want a Metadataset", file.string(), error.mark.line + 1, printable(error.msg));
  }
}

}  // namespace dfm::formats
