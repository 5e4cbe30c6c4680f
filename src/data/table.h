#pragma once
// Rows with pictures or clips, or the places of them, and captions: what parquet and csv files have in common.
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dfm/data/source.h"
#include "dfm/formats/hub.h"
#include "dfm/formats/parquet.h"

namespace dfm::data {

class Table {
 public:
  using Column = formats::ParquetFile::Column;
  using Cell = formats::ParquetFile::Cell;
  virtual ~Table() = default;
  [[nodiscard]] virtual std::string name() const = 0;  // "data (2 parquet files)"
  [[nodiscard]] virtual const std::vector<Column>& columns() const = 0;
  [[nodiscard]] virtual std::size_t num_rows() const = 0;
  [[nodiscard]] virtual std::string row_name(std::size_t row) const = 0;                  // "train-0.parquet:00000012"
  [[nodiscard]] virtual Cell read(std::size_t row, const std::string& column) const = 0;  // thread safe
  // What places in the row's file are relative to.
  [[nodiscard]] virtual std::filesystem::path folder(std::size_t row) const = 0;
};

// A column that csv files with `page_dir` and `videoid` (WebVid) have besides: the place of the clip.
inline constexpr const char* kWebVidPlace = "page_dir/videoid";

// A file and what it is called in names of items: its path relative to the folder or repository.
struct NamedFile {
  std::string name;
  std::filesystem::path path;
};
// The file and the row in it, of a row of all files; `ends` are the rows up to the end of each.
std::pair<std::size_t, std::size_t> place_in_files(const std::vector<std::size_t>& ends, std::size_t row);

// The columns are those that all files have.
std::unique_ptr<Table> open_parquet_table(const std::string& name, const std::vector<NamedFile>& files);
std::unique_ptr<Table> open_csv_table(const std::string& name, const std::vector<NamedFile>& files);

// The columns that a source takes. Names given by the user win; else they are found by name and kind.
struct TableColumns {
  std::string image;     // a picture, or the place of one
  std::string fallback;  // a place, where `image` is null; empty: none
  std::string caption;
};
// Columns that are not there, or none or several that might be meant, are a DataError that lists what there is.
TableColumns choose_columns(const std::string& table, const std::vector<Table::Column>& columns,
                            const std::string& image, const std::string& caption);
// The part of it that looks for captions among names of text.
std::string choose_caption(const std::string& table, const std::vector<std::string>& names, const std::string& listing);

// "image, name, id"
std::string joined_names(const std::vector<std::string>& names);
std::string joined_names(const std::vector<Table::Column>& columns);

// With `is_foreign`, a table that somebody else wrote and that was downloaded, places outside its own folder are
// refused: they would take this machine's files into the data set.
std::unique_ptr<Source> make_table_source(std::unique_ptr<Table> table, const SourceOptions& options,
                                          const formats::HubSettings& network, bool is_foreign);

}  // namespace dfm::data
