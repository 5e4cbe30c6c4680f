#include "data/metadata_captions.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/csv_file.h"
#include "data/table.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

namespace fs = std::filesystem;

std::string file_column(const SourceOptions& options) {
  return options.image_column.empty() ? "file_name" : options.image_column;
}

// The place of the caption's column, which the user names or which is found among the names.
std::string caption_column(const fs::path& path, const std::vector<std::string>& names, const SourceOptions& options) {
  const std::string listing = fmt::format("{}", fmt::join(names, ", "));
  if (!options.caption_column.empty()) return options.caption_column;
  std::vector<std::string> texts = names;
  std::erase(texts, file_column(options));
  return choose_caption(path.string(), texts, listing);
}

std::optional<std::string> text_of(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number() || value.is_boolean()) return value.dump();
  return std::nullopt;
}

}  // namespace

MetadataCaptions::MetadataCaptions(const fs::path& folder, const std::vector<std::string>& files,
                                   const SourceOptions& options) {
  for (const std::string& file : files) {
    const std::string parent = fs::path(file).parent_path().generic_string();
    const std::string prefix = parent.empty() ? "" : parent + "/";
    if (file.ends_with(".csv")) {
      read_csv(folder / file, prefix, options);
    } else {
      read_json_lines(folder / file, prefix, options);
    }
  }
}

void MetadataCaptions::add(const std::string& file, std::optional<std::string> text, std::string where) {
  const auto [it, is_new] = rows_.try_emplace(fs::path(file).lexically_normal().generic_string(), Row{text, where});
  if (!is_new && it->second.text != text) {
    throw DataError("{}: got a caption for {}, want one only, which {} has", where, file, it->second.where);
  }
}

void MetadataCaptions::read_json_lines(const fs::path& path, const std::string& prefix, const SourceOptions& options) {
  std::ifstream stream(path);
  if (!stream) throw DataError("{}: cannot open", path.string());
  // Which keys hold text is learnt from the first line; keys may be missing in lines after it.
  std::string caption, line;
  for (std::size_t number = 1; std::getline(stream, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}, line {}", path.string(), number);
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    if (!row.is_object()) throw DataError("{}: got text that is no JSON object, want one on each line", where);
    const std::string file_key = file_column(options);
    if (!row.contains(file_key) || !row.at(file_key).is_string()) {
      std::vector<std::string> keys;
      for (const auto& item : row.items()) keys.push_back(item.key());
      throw DataError("{}: got no {}, want the name of a picture or clip (columns: {}); hint: --image-column NAME",
                      where, file_key, fmt::join(keys, ", "));
    }
    if (caption.empty()) {
      std::vector<std::string> texts;
      for (const auto& item : row.items()) {
        if (item.value().is_string() || item.value().is_null()) texts.push_back(item.key());
      }
      caption = caption_column(path, texts, options);
      if (!row.contains(caption)) {
        throw DataError("{}: got no column {}, want one of: {}; hint: --caption-column NAME", where, caption,
                        fmt::join(texts, ", "));
      }
    }
    add(prefix + row.at(file_key).get<std::string>(), row.contains(caption) ? text_of(row.at(caption)) : std::nullopt,
        where);
  }
}

void MetadataCaptions::read_csv(const fs::path& path, const std::string& prefix, const SourceOptions& options) {
  const CsvFile csv(path);
  const auto column_of = [&](const std::string& name, const char* option) {
    const auto it = std::find(csv.columns().begin(), csv.columns().end(), name);
    if (it != csv.columns().end()) return static_cast<std::size_t>(it - csv.columns().begin());
    throw DataError("{}: got no column {}, want one of: {}; hint: {} NAME", path.string(), name,
                    fmt::join(csv.columns(), ", "), option);
  };
  const std::size_t file = column_of(file_column(options), "--image-column");
  const std::size_t caption = column_of(caption_column(path, csv.columns(), options), "--caption-column");
  for (std::size_t row = 0; row < csv.num_rows(); ++row) {
    std::vector<std::string> fields = csv.row(row);
    add(prefix + fields.at(file), std::move(fields.at(caption)), fmt::format("{}, row {}", path.string(), row + 1));
  }
}

}  // namespace dfm::data
