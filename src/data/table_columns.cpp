#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

#include "data/table.h"
#include "dfm/base/error.h"

namespace dfm::data {
namespace {

using Kind = Table::Column::Kind;

// Names in lower case. Of the first group that is there, one column is taken; several are a question to the user.
constexpr std::array<std::string_view, 5> kCaptionNames{"caption", "text", "prompt", "description", "captions"};
constexpr std::array<std::string_view, 6> kTitleNames{"name", "title", "label", "label_name", "class_name", "alt"};
// In order of preference.
constexpr std::array<std::string_view, 10> kPictureNames{"image", "img", "picture", "photo", "jpg",
                                                         "jpeg",  "png", "video",   "mp4",   "clip"};
constexpr std::array<std::string_view, 17> kPlaceNames{
    kWebVidPlace, "image",     "img",     "file_name",  "filename",  "file", "path", "image_path", "video_path",
    "video",      "image_url", "img_url", "image_link", "video_url", "url",  "link", "contenturl"};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

template <typename Predicate>
std::vector<std::string> those(const std::vector<std::string>& names, Predicate&& is_meant) {
  std::vector<std::string> found;
  std::copy_if(names.begin(), names.end(), std::back_inserter(found),
               [&](const std::string& name) { return is_meant(lower(name)); });
  return found;
}

const Table::Column* find(const std::vector<Table::Column>& columns, const std::string& name) {
  const auto it = std::find_if(columns.begin(), columns.end(), [&](const auto& column) { return column.name == name; });
  return it == columns.end() ? nullptr : &*it;
}

std::vector<std::string> names_of(const std::vector<Table::Column>& columns, Kind kind) {
  std::vector<std::string> names;
  for (const Table::Column& column : columns) {
    if (column.kind == kind) names.push_back(column.name);
  }
  return names;
}

template <std::size_t kCount>
std::string first_of(const std::vector<std::string>& names, const std::array<std::string_view, kCount>& wanted) {
  for (const std::string_view want : wanted) {
    for (const std::string& name : names) {
      if (lower(name) == want) return name;
    }
  }
  return "";
}

void check_named(const std::string& table, const std::vector<Table::Column>& columns, const std::string& name,
                 bool is_usable, const char* what, const char* option) {
  if (find(columns, name) == nullptr) {
    throw DataError("{}: got no column {}, want one of: {}; hint: {} NAME", table, name, joined_names(columns), option);
  }
  if (!is_usable) throw DataError("{}: got column {} of a type that holds no {} ({})", table, name, what, option);
}

std::string choose_image(const std::string& table, const std::vector<Table::Column>& columns) {
  const std::vector<std::string> pictures = names_of(columns, Kind::kPicture);
  if (pictures.size() == 1) return pictures[0];
  std::string name =
      pictures.empty() ? first_of(names_of(columns, Kind::kText), kPlaceNames) : first_of(pictures, kPictureNames);
  if (!name.empty()) return name;
  if (pictures.empty()) {
    throw DataError(
        "{}: got no column of pictures or of places of pictures, want one (columns: {}); hint: "
        "--image-column NAME",
        table, joined_names(columns));
  }
  throw DataError("{}: got several columns of pictures ({}), want one; hint: --image-column NAME", table,
                  joined_names(pictures));
}

}  // namespace

std::pair<std::size_t, std::size_t> place_in_files(const std::vector<std::size_t>& ends, std::size_t row) {
  const auto file = static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), row) - ends.begin());
  if (file == ends.size()) throw InternalError("table: got row {}, want one below its number of rows", row);
  return {file, file == 0 ? row : row - ends[file - 1]};
}

std::string joined_names(const std::vector<std::string>& names) { return fmt::format("{}", fmt::join(names, ", ")); }

std::string joined_names(const std::vector<Table::Column>& columns) {
  std::vector<std::string> names;
  for (const Table::Column& column : columns) names.push_back(column.name);
  return joined_names(names);
}

std::string choose_caption(const std::string& table, const std::vector<std::string>& names,
                           const std::string& listing) {
  const auto is_in = [](const auto& list) {
    return [&list](const std::string& name) { return std::find(list.begin(), list.end(), name) != list.end(); };
  };
  std::vector<std::string> found = those(names, is_in(kCaptionNames));
  if (found.empty()) found = those(names, is_in(kTitleNames));
  if (found.empty()) {
    found = those(names, [](const std::string& name) {
      return name.find("caption") != std::string::npos || name.find("prompt") != std::string::npos;
    });
  }
  if (found.empty() && names.size() == 1) found = names;
  if (found.size() == 1) return found[0];
  if (found.empty()) {
    throw DataError(
        "{}: got no column that is surely the captions, want one (columns: {}); hint: --caption-column NAME", table,
        listing);
  }
  throw DataError("{}: got several columns that may be the captions ({}), want one; hint: --caption-column NAME", table,
                  joined_names(found));
}

TableColumns choose_columns(const std::string& table, const std::vector<Table::Column>& columns,
                            const std::string& image, const std::string& caption) {
  TableColumns chosen{image, "", caption};
  if (image.empty()) {
    chosen.image = choose_image(table, columns);
  } else {
    const Table::Column* column = find(columns, image);
    const bool is_usable = column != nullptr && (column->kind == Kind::kPicture || column->kind == Kind::kText);
    check_named(table, columns, image, is_usable, "picture and no place of one", "--image-column");
  }
  const std::string fallback = chosen.image == kWebVidPlace ? "contentUrl" : chosen.image + "_url";
  if (const Table::Column* column = find(columns, fallback); column != nullptr && column->kind == Kind::kText) {
    chosen.fallback = fallback;
  }
  if (caption.empty()) {
    std::vector<std::string> names = names_of(columns, Kind::kText);
    std::erase_if(names, [&](const std::string& name) {
      return name == chosen.image || name == chosen.fallback || lower(name).ends_with("url");
    });
    chosen.caption = choose_caption(table, names, joined_names(columns));
  } else {
    const Table::Column* column = find(columns, caption);
    const bool is_usable = column != nullptr && (column->kind == Kind::kText || column->kind == Kind::kNumber);
    check_named(table, columns, caption, is_usable, "text", "--caption-column");
  }
  return chosen;
}

}  // namespace dfm::data
