#include <algorithm>
#include <memory>

#include "data/csv_file.h"
#include "data/table.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

class CsvTable : public Table {
 public:
  CsvTable(std::string name, std::vector<NamedFile> files);
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] const std::vector<Column>& columns() const override { return columns_; }
  [[nodiscard]] std::size_t num_rows() const override { return ends_.empty() ? 0 : ends_.back(); }
  [[nodiscard]] std::string row_name(std::size_t row) const override {
    const auto [file, row_in_file] = place_in_files(ends_, row);
    return fmt::format("{}:{:08}", files_[file].name, row_in_file);
  }
  [[nodiscard]] Cell read(std::size_t row, const std::string& column) const override;
  [[nodiscard]] std::filesystem::path folder(std::size_t row) const override {
    return files_[place_in_files(ends_, row).first].path.parent_path();
  }

 private:
  std::string name_;
  std::vector<NamedFile> files_;
  std::vector<std::unique_ptr<const CsvFile>> opened_;
  std::vector<Column> columns_;
  std::vector<std::size_t> ends_;  // rows up to the end of each file
};

CsvTable::CsvTable(std::string name, std::vector<NamedFile> files) : name_(std::move(name)), files_(std::move(files)) {
  for (const NamedFile& file : files_) {
    const CsvFile& csv = *opened_.emplace_back(std::make_unique<const CsvFile>(file.path));
    if (csv.columns() != opened_.front()->columns()) {
      throw DataError("{}: got columns {}, want those of {}: {}", file.path.string(), joined_names(csv.columns()),
                      files_.front().name, joined_names(opened_.front()->columns()));
    }
    ends_.push_back(num_rows() + csv.num_rows());
  }
  const std::vector<std::string>& names = opened_.front()->columns();
  for (const std::string& column : names) columns_.push_back({column, Column::Kind::kText});
  const auto has = [&](const char* column) { return std::find(names.begin(), names.end(), column) != names.end(); };
  if (has("page_dir") && has("videoid")) columns_.push_back({kWebVidPlace, Column::Kind::kText});
}

Table::Cell CsvTable::read(std::size_t row, const std::string& column) const {
  const auto [file, row_in_file] = place_in_files(ends_, row);
  const CsvFile& csv = *opened_[file];
  const std::vector<std::string> fields = csv.row(row_in_file);
  const auto field = [&](const std::string& wanted) {
    const auto it = std::find(csv.columns().begin(), csv.columns().end(), wanted);
    return fields.at(static_cast<std::size_t>(it - csv.columns().begin()));
  };
  if (column == kWebVidPlace) return {field("page_dir") + "/" + field("videoid") + ".mp4", ""};
  return {field(column), ""};
}

}  // namespace

std::unique_ptr<Table> open_csv_table(const std::string& name, const std::vector<NamedFile>& files) {
  return std::make_unique<CsvTable>(name, files);
}

}  // namespace dfm::data
