// u64 length of the header, the header as JSON, the data. A reader here accepts what the format's own library accepts:
// tensors that cover the data without holes and overlaps.
#include "dfm/formats/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <fmt/ranges.h>
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/pickle_writer.h"
#include "formats/mapped_tensor.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kLengthBytes = 8;
constexpr const char* kMetadata = "__metadata__";

struct TypeName {
  const char* name;
  at::ScalarType dtype;
};
// In the order in which the format's library ranks them; it writes larger ones first.
constexpr std::array kTypes = {
    TypeName{"BOOL", at::kBool},
    TypeName{"U8", at::kByte},
    TypeName{"I8", at::kChar},
    TypeName{"F8_E5M2", at::kFloat8_e5m2},
    TypeName{"F8_E4M3", at::kFloat8_e4m3fn},
    TypeName{"F8_E8M0", at::kFloat8_e8m0fnu},
    TypeName{"F8_E4M3FNUZ", at::kFloat8_e4m3fnuz},
    TypeName{"F8_E5M2FNUZ", at::kFloat8_e5m2fnuz},
    TypeName{"I16", at::kShort},
    TypeName{"U16", at::kUInt16},
    TypeName{"F16", at::kHalf},
    TypeName{"BF16", at::kBFloat16},
    TypeName{"I32", at::kInt},
    TypeName{"U32", at::kUInt32},
    TypeName{"F32", at::kFloat},
    TypeName{"C64", at::kComplexFloat},
    TypeName{"F64", at::kDouble},
    TypeName{"I64", at::kLong},
    TypeName{"U64", at::kUInt64},
};

// Names in an object once, and no nesting that a header does not have: the parser itself allows both.
nlohmann::json parse_header(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    constexpr int kDeepest = 4;
    if (depth > kDeepest) throw DataError("{}: got a header nested deeper than one of safetensors", path);
    if (event == nlohmann::json::parse_event_t::object_start) keys.emplace_back();
    if (event == nlohmann::json::parse_event_t::object_end) keys.pop_back();
    if (event == nlohmann::json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw DataError("{}: tensor {}: got the name twice in the header", path, printable(value.get<std::string>()));
    }
    return true;
  };
  try {
    nlohmann::json header = nlohmann::json::parse(text, check);
    if (!header.is_object()) throw DataError("{}: got a header that is no JSON object", path);
    return header;
  } catch (const nlohmann::json::exception&) {
    throw DataError("{}: got a header that is not JSON; hint: the file is damaged", path);
  }
}

std::optional<std::uint64_t> whole_number(const nlohmann::json& value) {
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kLargest) return std::nullopt;
  return value.get<std::uint64_t>();
}

std::vector<std::uint64_t> whole_numbers(const nlohmann::json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  std::vector<std::uint64_t> result;
  bool is_good = found != object.end() && found->is_array();
  if (is_good) {
    for (const auto& item : *found) {
      const auto number = whole_number(item);
      is_good &= number.has_value();
      result.push_back(number.value_or(0));
    }
  }
  if (!is_good) throw DataError("{}: got no {}, want whole numbers >= 0", where, key);
  return result;
}

SafetensorsFile::Entry parse_entry(const std::string& name, const nlohmann::json& value, std::uint64_t data_start,
                                   const std::string& path) {
  const std::string where = fmt::format("{}: tensor {}", path, printable(name));
  if (!value.is_object()) throw DataError("{}: got no object in the header", where);
  const auto type = value.find("dtype");
  if (type == value.end() || !type->is_string()) throw DataError("{}: got no dtype in the header", where);
  const auto known = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](const TypeName& entry) { return *type == std::string_view(entry.name); });
  if (known == kTypes.end()) {
    throw DataError("{}: got dtype {}, want one that PyTorch holds whole elements of (F32, BF16, ...)", where,
                    printable(type->get<std::string>()));
  }
  const auto shape = whole_numbers(value, "shape", where);
  const auto offsets = whole_numbers(value, "data_offsets", where);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) throw DataError("{}: got data_offsets that are no range", where);
  std::uint64_t num_bytes = c10::elementSize(known->dtype);
  constexpr std::size_t kMostDims = 64;
  bool overflow = shape.size() > kMostDims;
  for (const std::uint64_t size : shape) overflow |= __builtin_mul_overflow(num_bytes, size, &num_bytes);
  if (overflow || num_bytes != offsets[1] - offsets[0]) {
    throw DataError("{}: got {} bytes of data for {} [{}], want what the shape says", where, offsets[1] - offsets[0],
                    known->name, fmt::join(shape, ", "));
  }
  SafetensorsFile::Entry entry{name, {shape.begin(), shape.end()}, known->dtype, 0, num_bytes};
  if (__builtin_add_overflow(data_start, offsets[0], &entry.offset)) {
    throw DataError("{}: got data_offsets beyond the file", where);
  }
  return entry;
}

void check_cover(const std::vector<SafetensorsFile::Entry>& entries, std::uint64_t data_start, std::uint64_t file_size,
                 const std::string& path) {
  std::uint64_t end = data_start;
  for (const auto& entry : entries) {
    if (entry.offset != end) {
      throw DataError("{}: tensor {}: got data at byte {}, want them at {} (no holes, no overlap)", path,
                      printable(entry.name), entry.offset, end);
    }
    if (entry.size > file_size - end) {
      throw DataError("{}: tensor {}: got a file of {} bytes, want at least {}; hint: the file is cut short", path,
                      printable(entry.name), file_size, end + entry.size);
    }
    end += entry.size;
  }
  if (end != file_size) throw DataError("{}: got {} bytes after the last tensor, want none", path, file_size - end);
}

}  // namespace

struct SafetensorsFile::State {
  explicit State(const std::filesystem::path& path) : file(std::make_shared<const MappedFile>(path)) {
    const auto bytes = file->bytes();
    const std::string name = path.string();
    std::uint64_t length = 0;
    if (bytes.size() < kLengthBytes + 2)
      throw DataError("{}: got {} bytes, want a safetensors file", name, bytes.size());
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > kMaxHeaderBytes) {
      throw DataError("{}: got a header of {} bytes, want at most {} (safetensors)", name, length, kMaxHeaderBytes);
    }
    if (length > bytes.size() - kLengthBytes) {
      throw DataError("{}: got {} bytes, want at least {}; hint: the file is cut short", name, bytes.size(),
                      kLengthBytes + length);
    }
    const std::string_view text = as_text(bytes.subspan(kLengthBytes, static_cast<std::size_t>(length)));
    if (!text.starts_with('{')) throw DataError("{}: got no safetensors header, want one that starts with {{", name);
    const nlohmann::json header = parse_header(text, name);
    for (const auto& [key, value] : header.items()) {
      if (key != kMetadata) {
        entries.push_back(parse_entry(key, value, kLengthBytes + length, name));
        continue;
      }
      if (!value.is_object()) throw DataError("{}: got __metadata__ that is no object of texts", name);
      for (const auto& [item, content] : value.items()) {
        if (!content.is_string()) throw DataError("{}: got __metadata__ that is no object of texts", name);
        metadata[item] = content.get<std::string>();
      }
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.offset, a.size, a.name) < std::tie(b.offset, b.size, b.name);
    });
    check_cover(entries, kLengthBytes + length, bytes.size(), name);
  }

  std::shared_ptr<const MappedFile> file;
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : state_(std::make_shared<const State>(path)) {}
const std::vector<SafetensorsFile::Entry>& SafetensorsFile::entries() const { return state_->entries; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return state_->metadata; }

at::Tensor SafetensorsFile::read(const Entry& entry) const {
  const auto bytes = state_->file->bytes();
  if (entry.offset > bytes.size() || entry.size > bytes.size() - entry.offset) {
    throw InternalError("{}: tensor {}: got an entry of another file", state_->file->path().string(), entry.name);
  }
  return mapped_tensor(state_->file, {bytes.subspan(entry.offset, entry.size), entry.dtype, 0, entry.shape,
                                      contiguous_strides(entry.shape)});
}

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  struct Item {
    std::size_t rank;
    const std::string* name;
    const at::Tensor* tensor;
  };
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    std::size_t rank = 0;
    while (rank < kTypes.size() && kTypes[rank].dtype != tensor.scalar_type()) ++rank;
    if (rank == kTypes.size() || name == kMetadata) {
      throw InternalError("{}: tensor {}: got type {}, want a name and a type that safetensors holds", path.string(),
                          name, at::toString(tensor.scalar_type()));
    }
    items.push_back({rank, &name, &tensor});
  }
  std::sort(items.begin(), items.end(),
            [](const Item& a, const Item& b) { return a.rank != b.rank ? a.rank > b.rank : *a.name < *b.name; });
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::set<std::string_view> names;
  std::uint64_t end = 0;
  for (const Item& item : items) {
    if (!names.insert(*item.name).second) throw InternalError("{}: tensor {}: got it twice", path.string(), *item.name);
    const std::uint64_t start = end;
    end += item.tensor->nbytes();
    header +=
        fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", nlohmann::json(*item.name).dump(),
                    kTypes[item.rank].name, fmt::join(item.tensor->sizes(), ","), start, end);
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::filesystem::path temporary = path;
  temporary += ".tmp";
  try {
    File file(temporary, File::Mode::kCreate);
    const std::uint64_t length = header.size();
    file.write(std::as_bytes(std::span(&length, 1)));
    file.write(as_bytes(header));
    for (const Item& item : items) {
      const at::Tensor data = item.tensor->detach().cpu().contiguous();
      file.write({static_cast<const std::byte*>(data.const_data_ptr()), data.nbytes()});
    }
    file.sync();
    file.close();
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  rename_durably(temporary, path);
}

}  // namespace dfm::formats
