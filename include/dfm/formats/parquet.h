#pragma once
// Parquet files of pictures and captions, as Hugging Face data sets store them. The only place that knows Arrow.
//
//   const ParquetFile file("train-00000-of-00001.parquet");
//   for (const auto& column : file.columns()) ...            // "image" kPicture, "text" kText
//   const ParquetFile::Cell cell = file.read(12, "image");   // cell.bytes: a PNG or JPEG
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dfm::formats {

class ParquetFile {
 public:
  // Reads the footer. Damage is a DataError that names the file.
  explicit ParquetFile(const std::filesystem::path& path);
  struct Column {
    std::string name;  // of the top level
    // kPicture: binary, or Hugging Face's struct {bytes, path}; kText: a string, a list of strings, whose first is
    // taken, or a class label, whose name is taken; kNumber; kOther: what is not read here
    enum class Kind { kPicture, kText, kNumber, kOther } kind = Kind::kOther;
  };
  [[nodiscard]] const std::vector<Column>& columns() const;
  [[nodiscard]] std::int64_t num_rows() const;

  struct Cell {
    std::optional<std::string> bytes;  // of a picture; text and numbers as text; nothing for null
    std::string path;                  // of struct {bytes, path}
  };
  // Thread safe. Columns are decoded a few rows at a time (about 32 MB of pictures) and what was decoded last is kept:
  // rows read more or less in order are decoded once, whatever the size of their row group.
  [[nodiscard]] Cell read(std::int64_t row, const std::string& column) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace dfm::formats
