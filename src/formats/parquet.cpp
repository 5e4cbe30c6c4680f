#include "dfm/formats/parquet.h"

#include <arrow/array.h>
#include <arrow/io/file.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>
#include <arrow/type.h>
#include <arrow/util/key_value_metadata.h>
#include <parquet/arrow/reader.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>
#include <parquet/properties.h>
#include <parquet/schema.h>

#include <algorithm>
#include <charconv>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"

namespace dfm::formats {
namespace {

using Column = ParquetFile::Column;
using Cell = ParquetFile::Cell;

constexpr std::int64_t kChunkBytes = std::int64_t{32} << 20;  // decoded at a time, as far as the footer tells
constexpr std::int64_t kMostChunkRows = 1024;                 // a dictionary hides how large its values are
constexpr std::size_t kChunksKept = 3;                        // of a column: threads stand at neighbouring rows
constexpr std::int64_t kStreamBytes = std::int64_t{1} << 20;  // of compressed data at a time
constexpr std::size_t kMostCellBytes = std::size_t{1} << 30;

// What the `datasets` library writes into the schema: columns of type ClassLabel hold numbers of these names.
std::map<std::string, std::vector<std::string>> labels_of(const arrow::Schema& schema) {
  std::map<std::string, std::vector<std::string>> labels;
  if (!schema.metadata()) return labels;
  const std::string text = schema.metadata()->Get("huggingface").ValueOr("");
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const nlohmann::json::json_pointer place("/info/features");
  if (!json.is_object() || !json.contains(place) || !json.at(place).is_object()) return labels;
  for (const auto& [column, feature] : json.at(place).items()) {
    if (!feature.is_object() || feature.value("/_type"_json_pointer, nlohmann::json()) != "ClassLabel") continue;
    for (const auto& name : feature.value("/names"_json_pointer, nlohmann::json::array())) {
      labels[column].push_back(name.is_string() ? name.get<std::string>() : name.dump());
    }
  }
  return labels;
}

// Arrow reports by Status; what it or the Parquet library throws all the same becomes one here. Messages may run over
// several lines, with a stack of calls below the first.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

bool is_text_type(const arrow::DataType& type) {
  switch (type.id()) {
    case arrow::Type::STRING:
    case arrow::Type::LARGE_STRING:
    case arrow::Type::STRING_VIEW:
      return true;
    case arrow::Type::DICTIONARY:
      return is_text_type(*static_cast<const arrow::DictionaryType&>(type).value_type());
    default:
      return false;
  }
}

bool is_bytes_type(const arrow::DataType& type) {
  return type.id() == arrow::Type::BINARY || type.id() == arrow::Type::LARGE_BINARY ||
         type.id() == arrow::Type::BINARY_VIEW || type.id() == arrow::Type::FIXED_SIZE_BINARY;
}

Column::Kind kind_of(const arrow::DataType& type) {
  if (is_text_type(type)) return Column::Kind::kText;
  if (is_bytes_type(type)) return Column::Kind::kPicture;
  if (arrow::is_integer(type.id()) || arrow::is_floating(type.id())) return Column::Kind::kNumber;
  if (type.id() == arrow::Type::LIST || type.id() == arrow::Type::LARGE_LIST) {
    return is_text_type(*type.field(0)->type()) ? Column::Kind::kText : Column::Kind::kOther;
  }
  if (type.id() == arrow::Type::STRUCT) {
    const auto bytes = static_cast<const arrow::StructType&>(type).GetFieldByName("bytes");
    if (bytes && is_bytes_type(*bytes->type())) return Column::Kind::kPicture;
  }
  return Column::Kind::kOther;
}

std::string_view view_of(const arrow::Array& array, std::int64_t i) {
  switch (array.type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::BINARY:
      return static_cast<const arrow::BinaryArray&>(array).GetView(i);
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY:
      return static_cast<const arrow::LargeBinaryArray&>(array).GetView(i);
    case arrow::Type::STRING_VIEW:
    case arrow::Type::BINARY_VIEW:
      return static_cast<const arrow::BinaryViewArray&>(array).GetView(i);
    case arrow::Type::FIXED_SIZE_BINARY:
      return static_cast<const arrow::FixedSizeBinaryArray&>(array).GetView(i);
    default:
      throw InternalError("parquet: got a value of type {}, want text or bytes", array.type()->ToString());
  }
}

std::optional<std::string> value_of(const arrow::Array& array, std::int64_t i) {
  if (array.IsNull(i)) return std::nullopt;
  switch (array.type_id()) {
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
      return value_of(*dictionary.dictionary(), dictionary.GetValueIndex(i));
    }
    case arrow::Type::LIST: {
      const auto& list = static_cast<const arrow::ListArray&>(array);
      return list.value_length(i) > 0 ? value_of(*list.values(), list.value_offset(i)) : std::nullopt;
    }
    case arrow::Type::LARGE_LIST: {
      const auto& list = static_cast<const arrow::LargeListArray&>(array);
      return list.value_length(i) > 0 ? value_of(*list.values(), list.value_offset(i)) : std::nullopt;
    }
    default:
      break;
  }
  if (is_text_type(*array.type()) || is_bytes_type(*array.type())) return std::string(view_of(array, i));
  return array.GetScalar(i).ValueOrDie()->ToString();
}

Cell cell_of(const arrow::Array& array, std::int64_t i) {
  if (array.type_id() != arrow::Type::STRUCT) return {value_of(array, i), ""};
  if (array.IsNull(i)) return {};
  const auto& row = static_cast<const arrow::StructArray&>(array);
  const auto path = row.GetFieldByName("path");
  return {value_of(*row.GetFieldByName("bytes"), i),
          path && is_text_type(*path->type()) ? value_of(*path, i).value_or("") : ""};
}

}  // namespace

struct ParquetFile::State {
  explicit State(std::filesystem::path the_path);
  Cell read(std::int64_t row, const std::string& column);

  std::filesystem::path path;
  std::vector<Column> columns;
  std::int64_t num_rows = 0;

 private:
  // Rows of one column, read forwards within a row group.
  struct Stream {
    std::unique_ptr<parquet::arrow::FileReader> file;  // outlives `batches`
    std::unique_ptr<arrow::RecordBatchReader> batches;
    int group = -1;
    std::int64_t next_row = 0;  // of the file
  };
  struct Chunk {
    std::int64_t first_row = 0;
    std::shared_ptr<arrow::Array> values;
  };
  struct Reading {
    std::vector<int> leaves;  // Parquet's columns that make the top-level column
    Stream stream;
    std::deque<Chunk> chunks;
    struct Damage {
      std::int64_t first_row = 0;
      std::string message;
    };
    std::map<int, Damage> damage;  // by row group: what lies behind it is not tried again and again
  };

  // Runs `body` and turns Arrow's errors into a DataError.
  template <typename Body>
  auto guarded(const std::string& what, Body&& body) const;
  std::unique_ptr<parquet::arrow::FileReader> open(std::int64_t batch_rows) const;
  Reading& reading_of(const std::string& column);
  void start(Reading& reading, int group) const;
  void read_chunk(Reading& reading) const;

  std::shared_ptr<arrow::io::RandomAccessFile> input_;
  std::shared_ptr<parquet::FileMetaData> metadata_;
  std::map<std::string, std::vector<std::string>> labels_;  // by column: names of its numbers
  std::vector<std::int64_t> group_rows_;                    // first row of each row group, then the number of rows
  std::mutex mutex_;
  std::map<std::string, Reading> readings_;
};

template <typename Body>
auto ParquetFile::State::guarded(const std::string& what, Body&& body) const {
  try {
    return std::forward<Body>(body)();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw DataError("{}: cannot read {}: {}; hint: the file is damaged or was cut short", path.string(), what,
                    first_line(error.what()));
  }
}

namespace {

void check(const arrow::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

template <typename T>
T checked(arrow::Result<T> result) {
  check(result.status());
  return std::move(result).ValueUnsafe();
}

}  // namespace

std::unique_ptr<parquet::arrow::FileReader> ParquetFile::State::open(std::int64_t batch_rows) const {
  parquet::ReaderProperties properties = parquet::default_reader_properties();
  properties.enable_buffered_stream();  // else a whole column of the row group is read at once
  properties.set_buffer_size(kStreamBytes);
  properties.set_page_checksum_verification(true);
  parquet::ArrowReaderProperties arrow_properties;
  arrow_properties.set_pre_buffer(false);
  arrow_properties.set_use_threads(false);
  arrow_properties.set_batch_size(batch_rows);
  parquet::arrow::FileReaderBuilder builder;
  check(builder.Open(input_, properties, metadata_));
  builder.properties(arrow_properties);
  return checked(builder.Build());
}

ParquetFile::State::State(std::filesystem::path the_path) : path(std::move(the_path)) {
  if (std::filesystem::exists(path) && !std::filesystem::is_regular_file(path)) {
    throw DataError("{}: got something that is not a file, want a parquet file", path.string());
  }
  guarded("the footer", [&] {
    input_ = checked(arrow::io::ReadableFile::Open(path.string()));
    const auto reader = open(1);
    metadata_ = reader->parquet_reader()->metadata();
    num_rows = metadata_->num_rows();
    group_rows_.push_back(0);
    for (int group = 0; group < metadata_->num_row_groups(); ++group) {
      const std::int64_t rows = metadata_->RowGroup(group)->num_rows();
      if (rows < 0 || rows > num_rows - group_rows_.back()) throw std::runtime_error("row groups do not add up");
      group_rows_.push_back(group_rows_.back() + rows);
    }
    if (group_rows_.back() != num_rows) throw std::runtime_error("row groups do not add up");
    std::shared_ptr<arrow::Schema> schema;
    check(reader->GetSchema(&schema));
    labels_ = labels_of(*schema);
    for (const auto& field : schema->fields()) {
      columns.push_back({field->name(), kind_of(*field->type())});
      Column& column = columns.back();
      if (column.kind != Column::Kind::kNumber) {
        labels_.erase(column.name);
      } else if (labels_.contains(column.name)) {
        column.kind = Column::Kind::kText;
      }
    }
  });
}

ParquetFile::State::Reading& ParquetFile::State::reading_of(const std::string& column) {
  Reading& reading = readings_[column];
  if (!reading.leaves.empty()) return reading;
  const parquet::SchemaDescriptor& schema = *metadata_->schema();
  for (int i = 0; i < schema.num_columns(); ++i) {
    if (schema.GetColumnRoot(i)->name() == column) reading.leaves.push_back(i);
  }
  if (reading.leaves.empty()) throw InternalError("{}: got no column {} to read", path.string(), column);
  return reading;
}

void ParquetFile::State::start(Reading& reading, int group) const {
  const auto facts = metadata_->RowGroup(group);
  std::int64_t bytes = 0;
  for (const int leaf : reading.leaves)
    bytes += std::max<std::int64_t>(0, facts->ColumnChunk(leaf)->total_uncompressed_size());
  const std::int64_t row_bytes = bytes / std::max<std::int64_t>(1, facts->num_rows()) + 1;
  Stream stream;
  stream.file = open(std::clamp<std::int64_t>(kChunkBytes / row_bytes, 1, kMostChunkRows));
  stream.batches = checked(stream.file->GetRecordBatchReader({group}, reading.leaves));
  stream.group = group;
  stream.next_row = group_rows_[static_cast<std::size_t>(group)];
  reading.stream.batches.reset();
  reading.stream = std::move(stream);
}

void ParquetFile::State::read_chunk(Reading& reading) const {
  std::shared_ptr<arrow::RecordBatch> batch;
  check(reading.stream.batches->ReadNext(&batch));
  if (!batch || batch->num_columns() != 1 || batch->num_rows() == 0) throw std::runtime_error("rows are missing");
  check(batch->Validate());
  reading.chunks.push_back({reading.stream.next_row, batch->column(0)});
  reading.stream.next_row += batch->num_rows();
  if (reading.chunks.size() > kChunksKept) reading.chunks.pop_front();
}

Cell ParquetFile::State::read(std::int64_t row, const std::string& column) {
  if (row < 0 || row >= num_rows) throw InternalError("{}: got row {}, want 0 to {}", path.string(), row, num_rows - 1);
  const std::lock_guard lock(mutex_);
  return guarded(fmt::format("row {} of column {}", row, column), [&] {
    Reading& reading = reading_of(column);
    const auto holds = [&](const Chunk& chunk) {
      return row >= chunk.first_row && row < chunk.first_row + chunk.values->length();
    };
    auto chunk = std::find_if(reading.chunks.begin(), reading.chunks.end(), holds);
    if (chunk == reading.chunks.end()) {
      const auto after = std::upper_bound(group_rows_.begin(), group_rows_.end(), row);
      const int group = static_cast<int>(after - group_rows_.begin()) - 1;
      const auto damage = reading.damage.find(group);
      if (damage != reading.damage.end() && row >= damage->second.first_row) {
        throw std::runtime_error(damage->second.message);
      }
      try {
        if (reading.stream.group != group || reading.stream.next_row > row) start(reading, group);
        while (reading.stream.next_row <= row) read_chunk(reading);
      } catch (const std::exception& error) {
        const bool has_started = reading.stream.group == group;
        reading.damage[group] = {has_started ? reading.stream.next_row : group_rows_[static_cast<std::size_t>(group)],
                                 error.what()};
        reading.stream = {};
        throw;
      }
      chunk = std::prev(reading.chunks.end());
    }
    const arrow::Array& values = *chunk->values;
    Cell cell = cell_of(values, row - chunk->first_row);
    if (cell.bytes && cell.bytes->size() > kMostCellBytes) throw std::runtime_error("the value is larger than 1 GiB");
    if (const auto labels = labels_.find(column); labels != labels_.end() && cell.bytes) {
      std::size_t number = 0;
      const auto [end, error] = std::from_chars(cell.bytes->data(), cell.bytes->data() + cell.bytes->size(), number);
      const bool is_named = error == std::errc() && number < labels->second.size();  // -1: no label
      cell.bytes = is_named ? std::optional(labels->second[number]) : std::nullopt;
    }
    return cell;
  });
}

ParquetFile::ParquetFile(const std::filesystem::path& path) : state_(std::make_shared<State>(path)) {}
const std::vector<Column>& ParquetFile::columns() const { return state_->columns; }
std::int64_t ParquetFile::num_rows() const { return state_->num_rows; }
Cell ParquetFile::read(std::int64_t row, const std::string& column) const { return state_->read(row, column); }

}  // namespace dfm::formats
