#include "layering/layer_rules.h"

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>

namespace dfm::layering {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_source(const fs::path& path) {
  const auto extension = path.extension().string();
  return extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh";
}

std::vector<fs::path> sources_below(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file() && is_source(entry.path())) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// Headers of the C and C++ libraries, of Linux and of the compiler: allowed everywhere.
bool is_system(const std::string& header) {
  static const std::regex pattern(
      R"([a-z0-9_]+|(sys|netinet|arpa|linux)/.*|(unistd|fcntl|poll|pthread|signal|dlfcn|link|errno|netdb|math|sched|omp|[a-z]*mmintrin)\.h)");
  return std::regex_match(header, pattern);
}

bool is_of(const std::string& header, const std::string& library) {
  if (library == "cuda") {
    static const std::regex pattern(R"((cuda|cooperative_groups|cub/|mma).*)");
    return std::regex_match(header, pattern);
  }
  return header == library || header.starts_with(library + "/");
}

// What is wrong with `header` in a file of `layer`, or "".
std::string problem(const std::string& header, bool is_public, const Layer& layer,
                    const std::set<std::string>& layers) {
  const auto slash = header.find('/');
  const auto first = header.substr(0, slash);
  if (first == "dfm" && slash != std::string::npos) {
    const auto other = header.substr(4, header.find('/', 4) - 4);
    if (other == layer.name || other == "base" || contains(layer.uses, other)) return "";
    if (other == "config" && header == "dfm/config/schema.h") return "";
    return layer.name + " may not use " + other;
  }
  if (slash != std::string::npos && layers.contains(first))  // src/<layer>/..., by the root of src
    return first == layer.name ? "" : "a private header of " + first;
  if (is_system(header)) return "";
  const bool allowed = std::any_of(layer.third_party.begin(), layer.third_party.end(),
                                   [&](const std::string& library) { return is_of(header, library); });
  if (!allowed) return layer.name + " may not name this library";
  if (header == "torch/torch.h" || header == "torch/extension.h") return "costs 11 to 18 s a file";
  if (is_public && header != "ATen/core/Tensor.h" && !is_of(header, "fmt"))
    return "a public header may name ATen/core/Tensor.h and fmt only";
  return "";
}

void check_file(const fs::path& root, const fs::path& file, bool is_public, const Layer& layer,
                const std::set<std::string>& layers, std::vector<std::string>& found) {
  static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::ifstream stream(file);
  std::smatch match;
  int number = 0;
  for (std::string line; std::getline(stream, line);) {
    ++number;
    if (!std::regex_match(line, match, pattern)) continue;
    const std::string header = match[2];
    const bool beside = match[1] == "\"" && fs::exists(file.parent_path() / header);
    if (beside) continue;
    if (const auto text = problem(header, is_public, layer, layers); !text.empty())
      found.push_back(fs::relative(file, root).string() + ":" + std::to_string(number) + ": includes " + header + ": " +
                      text);
  }
}

}  // namespace

std::vector<Layer> read_table(const fs::path& dfm_layers_cmake) {
  std::ifstream stream(dfm_layers_cmake);
  static const std::regex row(R"re(^\s*"([a-z_]+)\s*\|([^|"]*)\|([^|"]*)"\)?\s*$)re");
  std::vector<Layer> table;
  std::smatch match;
  for (std::string line; std::getline(stream, line);)
    if (std::regex_match(line, match, row)) table.push_back({match[1], words(match[2]), words(match[3])});
  return table;
}

std::vector<std::string> violations(const fs::path& root, const std::vector<Layer>& table) {
  std::set<std::string> layers;
  for (const auto& layer : table) layers.insert(layer.name);
  std::vector<std::string> found;
  for (const auto& parent : {root / "src", root / "include/dfm"}) {
    if (!fs::exists(parent)) continue;
    for (const auto& entry : fs::directory_iterator(parent))
      if (entry.is_directory() && !layers.contains(entry.path().filename().string()))
        found.push_back(fs::relative(entry.path(), root).string() + ": not a layer of cmake/DfmLayers.cmake");
  }
  for (const auto& layer : table) {
    for (const auto& file : sources_below(root / "src" / layer.name))
      check_file(root, file, false, layer, layers, found);
    for (const auto& file : sources_below(root / "include/dfm" / layer.name))
      check_file(root, file, true, layer, layers, found);
  }
  return found;
}

std::vector<std::string> rank_names(const fs::path& root, const std::vector<std::string>& layers) {
  static const std::regex names(R"(\b(\w+_)?(ranks?|world_size|all_reduce|all_gather|reduce_scatter)(_\w*)?\b|nccl)",
                                std::regex::icase);
  static const std::regex ignored(R"re("([^"\\]|\\.)*"|//.*$)re");
  std::vector<std::string> found;
  for (const auto& layer : layers)
    for (const auto& folder : {root / "src" / layer, root / "include/dfm" / layer})
      for (const auto& file : sources_below(folder)) {
        std::ifstream stream(file);
        int number = 0;
        for (std::string line; std::getline(stream, line);) {
          ++number;
          if (std::regex_search(std::regex_replace(line, ignored, ""), names))
            found.push_back(fs::relative(file, root).string() + ":" + std::to_string(number) + ": " + line);
        }
      }
  return found;
}

}  // namespace dfm::layering
