#pragma once
// Captions in metadata.jsonl and metadata.csv files, as Hugging Face's ImageFolder has them: rows with `file_name`,
// relative to the folder of the metadata file, and a caption.
#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "dfm/data/source.h"

namespace dfm::data {

class MetadataCaptions {
 public:
  // `files` are relative to the folder. A line that is no JSON object, no `file_name` and no caption column are a
  // DataError; two captions for one file as well.
  MetadataCaptions(const std::filesystem::path& folder, const std::vector<std::string>& files,
                   const SourceOptions& options);
  struct Row {
    std::optional<std::string> text;  // as it stands there
    std::string where;                // "pictures/metadata.jsonl, row 3"
  };
  // By the path of the picture or clip relative to the folder.
  [[nodiscard]] const std::unordered_map<std::string, Row>& rows() const { return rows_; }

 private:
  void read_json_lines(const std::filesystem::path& path, const std::string& prefix, const SourceOptions& options);
  void read_csv(const std::filesystem::path& path, const std::string& prefix, const SourceOptions& options);
  void add(const std::string& file, std::optional<std::string> text, std::string where);

  std::unordered_map<std::string, Row> rows_;
};

}  // namespace dfm::data
