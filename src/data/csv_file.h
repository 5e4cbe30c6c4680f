#pragma once
// Comma-separated files (RFC 4180): quoted fields may hold commas, doubled quotes and line ends. The first row names
// the columns. What is kept in memory is 8 bytes a row: a row is read again when it is asked for, so tables of millions
// of clips open in seconds.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dfm/base/file.h"

namespace dfm::data {

class CsvFile {
 public:
  // A quote that never ends, a row of more than 16 MiB and a file without a row of names are a DataError.
  explicit CsvFile(const std::filesystem::path& path);
  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  [[nodiscard]] const std::vector<std::string>& columns() const { return columns_; }
  [[nodiscard]] std::size_t num_rows() const { return row_ends_.size() - 1; }
  // Thread safe. As many fields as there are columns; another number is a DataError that names the row.
  [[nodiscard]] std::vector<std::string> row(std::size_t index) const;

 private:
  [[nodiscard]] std::vector<std::string> read_fields(std::uint64_t begin, std::uint64_t end) const;

  File file_;
  std::vector<std::string> columns_;
  std::vector<std::uint64_t>
      row_ends_;  // of the row of names, then of each row; a row begins where the one before ends
};

}  // namespace dfm::data
