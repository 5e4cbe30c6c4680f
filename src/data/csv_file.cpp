#include "data/csv_file.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "dfm/base/error.h"

namespace dfm::data {
namespace {

constexpr std::uint64_t kBlockBytes = 1 << 20;
constexpr std::uint64_t kMostRowBytes = 16 << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// The state of reading a row, a byte at a time. A quote is one only at the start of a field; inside quotes, a doubled
// one stands for itself.
class RowState {
 public:
  enum class Event { kNone, kByte /* of the field */, kFieldEnd, kRowEnd };
  Event take(char c) {
    if (place_ == Place::kQuoted) {
      if (c != '"') return Event::kByte;
      place_ = Place::kQuoteInQuoted;
      return Event::kNone;
    }
    if (c == '"' && place_ == Place::kQuoteInQuoted) {
      place_ = Place::kQuoted;
      return Event::kByte;
    }
    if (c == '"' && place_ == Place::kStart) {
      place_ = Place::kQuoted;
      return Event::kNone;
    }
    if (c == ',') {
      place_ = Place::kStart;
      return Event::kFieldEnd;
    }
    if (c == '\n') {
      place_ = Place::kStart;
      return Event::kRowEnd;
    }
    place_ = Place::kPlain;
    return Event::kByte;
  }
  [[nodiscard]] bool is_quoted() const { return place_ == Place::kQuoted; }

 private:
  enum class Place { kStart, kPlain, kQuoted, kQuoteInQuoted } place_ = Place::kStart;
};

bool is_blank(std::string_view text) { return text.find_first_not_of("\r\n\t ") == std::string_view::npos; }

}  // namespace

CsvFile::CsvFile(const std::filesystem::path& path) : file_(path, File::Mode::kRead) {
  const std::uint64_t size = file_.size();
  std::string block;
  RowState state;
  std::uint64_t begin = 0;
  bool is_blank_row = true;
  // Blank lines belong to the row before them: a row's end moves on.
  const auto end_row = [&](std::uint64_t end) {
    if (!is_blank_row) {
      row_ends_.push_back(end);
    } else if (!row_ends_.empty()) {
      row_ends_.back() = end;
    }
    begin = end;
    is_blank_row = true;
  };
  for (std::uint64_t offset = 0; offset < size; offset += block.size()) {
    block.resize(std::min(kBlockBytes, size - offset));
    file_.read_at(offset, std::as_writable_bytes(std::span(block)));
    const bool has_mark = offset == 0 && block.starts_with(kByteOrderMark);
    for (std::size_t i = has_mark ? kByteOrderMark.size() : 0; i < block.size(); ++i) {
      if (!is_blank({&block[i], 1})) is_blank_row = false;
      if (state.take(block[i]) == RowState::Event::kRowEnd) end_row(offset + i + 1);
    }
    if (offset + block.size() - begin > kMostRowBytes) {
      throw DataError("{}: got a row of more than {} MiB (row {}); hint: is a quote left open?", path.string(),
                      kMostRowBytes >> 20, row_ends_.size());
    }
  }
  if (state.is_quoted()) {
    throw DataError("{}: got a quote that never ends (row {}); hint: the file was cut short", path.string(),
                    row_ends_.size());
  }
  if (begin < size) end_row(size);
  if (row_ends_.empty()) throw DataError("{}: got no row, want one with the columns' names", path.string());
  columns_ = read_fields(0, row_ends_[0]);
}

std::vector<std::string> CsvFile::read_fields(std::uint64_t begin, std::uint64_t end) const {
  std::string text(end - begin, '\0');
  file_.read_at(begin, std::as_writable_bytes(std::span(text)));
  std::string_view rest = text;
  if (begin == 0 && rest.starts_with(kByteOrderMark)) rest.remove_prefix(kByteOrderMark.size());
  rest.remove_prefix(std::min(rest.find_first_not_of("\r\n"), rest.size()));
  std::vector<std::string> fields(1);
  RowState state;
  for (const char c : rest) {
    switch (state.take(c)) {
      case RowState::Event::kNone:
        break;
      case RowState::Event::kByte:
        fields.back().push_back(c);
        break;
      case RowState::Event::kFieldEnd:
        fields.emplace_back();
        break;
      case RowState::Event::kRowEnd:
        if (fields.back().ends_with('\r')) fields.back().pop_back();
        return fields;
    }
  }
  if (fields.back().ends_with('\r')) fields.back().pop_back();
  return fields;
}

std::vector<std::string> CsvFile::row(std::size_t index) const {
  std::vector<std::string> fields = read_fields(row_ends_.at(index), row_ends_.at(index + 1));
  if (fields.size() != columns_.size()) {
    throw DataError("{}: got {} fields in row {}, want {}, as many as there are columns", path().string(),
                    fields.size(), index + 1, columns_.size());
  }
  return fields;
}

}  // namespace dfm::data
