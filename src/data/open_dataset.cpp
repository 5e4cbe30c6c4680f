// From what the user names to data sets: a folder, a Metadataset YAML and those that it names, or a list.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "data/open_folder.h"
#include "dfm/base/error.h"
#include "dfm/data/blend.h"
#include "dfm/data/config.h"
#include "dfm/data/dataset.h"
#include "dfm/data/plan.h"
#include "dfm/formats/metadataset.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;
using formats::MetadatasetMode;

bool is_yaml(const fs::path& path) {
  std::error_code ignored;
  const std::string extension = path.extension().string();
  return (extension == ".yaml" || extension == ".yml") && !fs::is_directory(path, ignored);
}

// One split of one folder, and its part in the whole: a weight, those of a group summing to 1, or repetitions.
struct Leaf {
  fs::path folder;
  std::string split;
  double share = 1;
};

struct Group {
  MetadatasetMode mode = MetadatasetMode::kSingle;
  std::vector<Leaf> leaves;
};

// Follows YAMLs down to folders.
class Resolver {
 public:
  Group resolve(const fs::path& path, const std::string& split) {
    if (!is_yaml(path)) return {.leaves = {{path, split}}};
    std::error_code ignored;
    if (!fs::is_regular_file(path, ignored)) throw DataError("data set {}: got no such file, want one", path.string());
    const std::string name = fs::weakly_canonical(path).string() + ":" + split;
    if (std::find(open_.begin(), open_.end(), name) != open_.end()) {
      throw DataError("{}: got a Metadataset that contains itself (split {}), want none", path.string(), split);
    }
    constexpr std::size_t kMostNested = 32;
    if (open_.size() >= kMostNested) throw DataError("{}: got more than {} nested YAMLs", path.string(), kMostNested);
    open_.push_back(name);
    Group group = join(path, split);
    open_.pop_back();
    return group;
  }

 private:
  Group join(const fs::path& path, const std::string& split) {
    const formats::Metadataset splits = formats::read_metadataset(path);
    const auto found = splits.find(split);
    if (found == splits.end()) {
      std::string names;
      for (const auto& [name, unused] : splits) names += (names.empty() ? "" : ", ") + name;
      throw DataError("{}: got no split {}, want it beside {}", path.string(), split, names.empty() ? "none" : names);
    }
    const formats::MetadatasetSplit& wanted = found->second;
    const double sum = std::accumulate(wanted.parts.begin(), wanted.parts.end(), 0.0,
                                       [](double before, const auto& part) { return before + part.share; });
    Group group;
    group.mode = wanted.mode;
    for (const formats::MetadatasetPart& part : wanted.parts) {
      check_exists(part);
      const Group inner = resolve(part.path, part.split_part.empty() ? split : part.split_part);
      if (wanted.mode == MetadatasetMode::kSingle) return inner;
      if (inner.mode != MetadatasetMode::kSingle && inner.mode != wanted.mode) {
        throw DataError("{}: got `blend` and `blend_epochized` inside each other, want one of them", part.place);
      }
      for (Leaf leaf : inner.leaves) {
        leaf.share *= wanted.mode == MetadatasetMode::kWeighted ? part.share / sum : part.share;
        group.leaves.push_back(std::move(leaf));
      }
      constexpr std::size_t kMostLeaves = 1 << 16;
      if (group.leaves.size() > kMostLeaves) {
        throw DataError("{}: got more than {} data sets, want fewer", part.place, kMostLeaves);
      }
    }
    return group;
  }

  static void check_exists(const formats::MetadatasetPart& part) {
    std::error_code ignored;
    if (fs::exists(part.path, ignored)) return;
    throw DataError("data set {}: got no such folder or YAML, want one ({})", part.path.string(), part.place);
  }

  std::vector<std::string> open_;  // YAMLs that are being read, with their splits
};

// Folders that are named several times are one set, with the sum of their shares.
void merge_equal(std::vector<Leaf>& leaves) {
  std::map<std::string, std::size_t> place;
  std::vector<Leaf> merged;
  for (Leaf& leaf : leaves) {
    const std::string name = fs::weakly_canonical(leaf.folder).string() + ":" + leaf.split;
    const auto [found, is_new] = place.emplace(name, merged.size());
    if (is_new) {
      merged.push_back(std::move(leaf));
    } else {
      merged[found->second].share += leaf.share;
    }
  }
  leaves = std::move(merged);
}

std::shared_ptr<Dataset> open_group(Group group, const fs::path& folder) {
  merge_equal(group.leaves);
  const bool is_epochized = group.mode == MetadatasetMode::kEpochized;
  std::vector<BlendPart> parts;
  for (const Leaf& leaf : group.leaves) parts.push_back({open_folder(leaf.folder, leaf.split), leaf.share, ""});
  if (parts.size() == 1 && (!is_epochized || parts.front().share == 1)) return parts.front().dataset;
  return make_blend(std::move(parts), is_epochized ? BlendMode::kEpochized : BlendMode::kWeighted, folder);
}

std::optional<double> number_in(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// Samples of all folders of a group.
double count_samples(const Group& group) {
  double count = 0;
  for (const Leaf& leaf : group.leaves) {
    count += static_cast<double>(open_folder(leaf.folder, leaf.split)->entries().size());
  }
  return count;
}

}  // namespace

std::vector<BlendItem> parse_blend(const std::vector<std::string>& blend) {
  std::vector<BlendItem> items;
  const bool has_weights = !blend.empty() && number_in(blend.front()).has_value();
  for (std::size_t i = 0; i < blend.size(); ++i) {
    BlendItem item;
    if (has_weights) {
      const std::optional<double> weight = number_in(blend[i]);
      if (!weight || i + 1 == blend.size()) {
        throw ConfigError(
            "dataset.blend: got '{}' as item {}, want a weight before each path, or paths alone; hint: "
            "dataset.blend=[0.7, A, 0.3, B]",
            blend[i], i + 1);
      }
      if (!std::isfinite(*weight) || *weight <= 0) {
        throw ConfigError("dataset.blend: got weight {}, want one above 0", blend[i]);
      }
      item.weight = *weight;
      ++i;
    }
    item.path = blend[i];
    if (item.path.empty()) throw ConfigError("dataset.blend: got an empty path as item {}, want one", i + 1);
    items.push_back(std::move(item));
  }
  return items;
}

std::vector<std::string> with_absolute_paths(const std::vector<std::string>& blend) {
  std::vector<std::string> result = blend;
  const bool has_weights = !blend.empty() && number_in(blend.front()).has_value();
  for (std::size_t i = has_weights ? 1 : 0; i < result.size(); i += has_weights ? 2 : 1) {
    fs::path path = fs::absolute(result[i]).lexically_normal();
    result[i] = (path.has_filename() ? path : path.parent_path()).string();
  }
  return result;
}

std::size_t Dataset::index_at(std::uint64_t seed, std::uint64_t position) const {
  return sample_at(seed, position, entries().size());
}

std::shared_ptr<Dataset> Dataset::open(const fs::path& path, const std::string& split) {
  return open_group(Resolver().resolve(path, split), path);
}

std::shared_ptr<Dataset> Dataset::open(const DatasetConfig& config, const std::string& split) {
  if (!config.path.empty() && !config.blend.empty()) {
    throw ConfigError("dataset.blend: got a value beside dataset.path={}, want one of them; hint: dataset.path=null",
                      config.path.string());
  }
  if (config.blend.empty()) {
    if (config.path.empty()) {
      throw ConfigError(
          "dataset.path: got no value, want the folder that `dfm prepare` wrote; hint: --dataset-path DIR");
    }
    return open(config.path, split);
  }
  Group all{.mode = MetadatasetMode::kWeighted, .leaves = {}};
  for (const BlendItem& item : parse_blend(config.blend)) {
    const Group group = Resolver().resolve(item.path, split);
    if (group.mode == MetadatasetMode::kEpochized) {
      throw DataError("{}: got `blend_epochized` in dataset.blend, want weights; hint: give it as dataset.path",
                      item.path.string());
    }
    const double weight = item.weight > 0 ? item.weight : count_samples(group);
    for (Leaf leaf : group.leaves) {
      leaf.share *= weight;
      all.leaves.push_back(std::move(leaf));
    }
  }
  return open_group(std::move(all), "dataset.blend");
}

}  // namespace dfm::data
