#include <algorithm>
#include <list>
#include <mutex>

#include "data/table.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

class ParquetTable : public Table {
 public:
  ParquetTable(std::string name, std::vector<NamedFile> files);
  [[nodiscard]] std::string name() const override { return name_; }
  [[nodiscard]] const std::vector<Column>& columns() const override { return columns_; }
  [[nodiscard]] std::size_t num_rows() const override { return ends_.empty() ? 0 : ends_.back(); }
  [[nodiscard]] std::string row_name(std::size_t row) const override {
    const auto [file, row_in_file] = place_in_files(ends_, row);
    return fmt::format("{}:{:08}", files_[file].name, row_in_file);
  }
  [[nodiscard]] Cell read(std::size_t row, const std::string& column) const override {
    const auto [file, row_in_file] = place_in_files(ends_, row);
    return open(file)->read(static_cast<std::int64_t>(row_in_file), column);
  }
  [[nodiscard]] std::filesystem::path folder(std::size_t row) const override {
    return files_[place_in_files(ends_, row).first].path.parent_path();
  }

 private:
  // Each open file keeps what it decoded last: about 100 MB.
  static constexpr std::size_t kMostOpen = 3;

  [[nodiscard]] std::shared_ptr<const formats::ParquetFile> open(std::size_t file) const;

  std::string name_;
  std::vector<NamedFile> files_;
  std::vector<Column> columns_;
  std::vector<std::size_t> ends_;  // rows up to the end of each file
  mutable std::mutex mutex_;
  mutable std::list<std::pair<std::size_t, std::shared_ptr<const formats::ParquetFile>>> open_;  // last used first
};

ParquetTable::ParquetTable(std::string name, std::vector<NamedFile> files)
    : name_(std::move(name)), files_(std::move(files)) {
  for (const NamedFile& file : files_) {
    const formats::ParquetFile parquet(file.path);
    if (ends_.empty()) columns_ = parquet.columns();
    // What the files have in common: a column that is all null in one of them may have another type there.
    std::erase_if(columns_, [&](const Column& column) {
      return std::none_of(parquet.columns().begin(), parquet.columns().end(),
                          [&](const Column& other) { return other.name == column.name && other.kind == column.kind; });
    });
    ends_.push_back(num_rows() + static_cast<std::size_t>(parquet.num_rows()));
  }
}

std::shared_ptr<const formats::ParquetFile> ParquetTable::open(std::size_t file) const {
  const std::lock_guard lock(mutex_);
  auto it = std::find_if(open_.begin(), open_.end(), [&](const auto& entry) { return entry.first == file; });
  if (it == open_.end()) {
    if (open_.size() >= kMostOpen) open_.pop_back();
    open_.emplace_front(file, std::make_shared<const formats::ParquetFile>(files_[file].path));
  } else {
    open_.splice(open_.begin(), open_, it);
  }
  return open_.front().second;
}

}  // namespace

std::unique_ptr<Table> open_parquet_table(const std::string& name, const std::vector<NamedFile>& files) {
  return std::make_unique<ParquetTable>(name, files);
}

}  // namespace dfm::data
