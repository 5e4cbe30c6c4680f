#include "inspect/tensors.h"

#include <ATen/ATen.h>

#include <array>
#include <map>
#include <utility>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/pickle.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/torch_file.h"
#include "dfm/formats/weights.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostText = 200;  // of a value, bytes
constexpr std::size_t kMostItems = 50;  // of a list

std::vector<NamedShape> shapes_of(const formats::Weights& weights) {
  std::vector<NamedShape> shapes;
  for (const auto& entry : weights.entries()) shapes.push_back({entry.name, entry.shape, entry.dtype});
  return shapes;
}

// "layers.12.weight" -> "layers.*.weight"
std::string pattern_of(const std::string& name) {
  std::string pattern;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    const std::string part = name.substr(at, end - at);
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    pattern += (at == 0 ? "" : ".") + (is_number ? "*" : part);
    at = end + 1;
  }
  return pattern;
}

std::string dotted(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

std::string key_text(const formats::PickleValue& key) {
  if (const std::string* text = key.text()) return *text;
  if (const std::int64_t* number = key.integer()) return std::to_string(*number);
  return "?";
}

// What a torch file holds besides tensors, with dotted names.
void add_values(const formats::PickleValue& value, const std::string& name, Facts& values) {
  if (values.size() >= 1000 || value.tensor() != nullptr) return;
  const auto add_list = [&](const formats::PickleList& items) {
    if (items.empty() || items.size() > kMostItems) {
      values[name] = fmt::format("list of {}", items.size());
      return;
    }
    for (std::size_t i = 0; i < items.size(); ++i) add_values(items[i], dotted(name, std::to_string(i)), values);
  };
  if (const formats::PickleDict* dict = value.dict()) {
    if (dict->empty()) values[name] = "empty dict";
    for (const auto& [key, item] : *dict) add_values(item, dotted(name, key_text(key)), values);
  } else if (const formats::PickleList* list = value.list()) {
    add_list(*list);
  } else if (const formats::PickleList* tuple = value.tuple()) {
    add_list(*tuple);
  } else if (const formats::PickleObject* object = value.object()) {
    values[name] = fmt::format("object of {}.{}", object->global.module, object->global.name);
    if (!object->state.is_none()) add_values(object->state, dotted(name, "state"), values);
  } else if (value.is_none()) {
    values[name] = nullptr;
  } else if (const bool* boolean = value.boolean()) {
    values[name] = *boolean;
  } else if (const std::int64_t* integer = value.integer()) {
    values[name] = *integer;
  } else if (const double* real = value.real()) {
    values[name] = *real;
  } else if (const std::string* text = value.text()) {
    values[name] = *text;
  } else if (const std::string* bytes = value.bytes()) {
    values[name] = fmt::format("{} bytes", bytes->size());
  } else if (const auto* global = std::get_if<formats::PickleGlobal>(&value.value)) {
    values[name] = fmt::format("{}.{}", global->module, global->name);
  } else if (const auto* dtype = std::get_if<at::ScalarType>(&value.value)) {
    values[name] = dtype_name(*dtype);
  } else if (std::holds_alternative<std::shared_ptr<formats::PickleStorage>>(value.value)) {
    values[name] = "storage";
  } else {
    values[name] = "a number of more than 64 bits";
  }
}

// In a list or alone, tensors have no names: their place is the name.
void add_unnamed(const formats::PickleValue& value, const std::string& name, std::vector<NamedShape>& tensors) {
  if (const at::Tensor* tensor = value.tensor()) {
    tensors.push_back({name.empty() ? "(the tensor)" : name, tensor->sizes().vec(), tensor->scalar_type()});
    return;
  }
  const auto add_items = [&](const formats::PickleList& items) {
    for (std::size_t i = 0; i < items.size(); ++i) add_unnamed(items[i], dotted(name, std::to_string(i)), tensors);
  };
  if (const formats::PickleList* list = value.list()) {
    add_items(*list);
  } else if (const formats::PickleList* tuple = value.tuple()) {
    add_items(*tuple);
  } else if (const formats::PickleDict* dict = value.dict()) {
    for (const auto& [key, item] : *dict) add_unnamed(item, dotted(name, key_text(key)), tensors);
  } else if (const formats::PickleObject* object = value.object()) {
    add_unnamed(object->state, dotted(name, "state"), tensors);
  }
}

void add_content(Facts& facts, const formats::PickleValue& value) {
  std::vector<NamedShape> tensors;
  add_unnamed(value, "", tensors);
  add_tensors(facts, tensors);
  Facts values = Facts::object();
  add_values(value, "", values);
  if (!values.empty()) facts["values"] = std::move(values);
}

// A file that is one tensor: its numbers, too.
void describe_single(Facts& facts, const formats::PickleValue& value) {
  if (value.tensor() == nullptr) return;
  facts["content"] = describe_tensor(*value.tensor());
}

std::string magic_of(const fs::path& path) {
  const File file(path, File::Mode::kRead);
  std::string magic(std::min<std::uint64_t>(file.size(), 16), '\0');
  file.read_at(0, {reinterpret_cast<std::byte*>(magic.data()), magic.size()});
  return magic;
}

bool is_safetensors(const std::string& magic) { return magic.size() > 9 && magic[8] == '{'; }

}  // namespace

void add_tensors(Facts& facts, const std::vector<NamedShape>& tensors) {
  std::int64_t num_parameters = 0, num_bytes = 0;
  std::map<std::string, std::int64_t> dtypes;
  Facts list = Facts::array();
  for (const NamedShape& tensor : tensors) {
    std::int64_t numel = 1;
    for (const std::int64_t size : tensor.shape) numel *= size;
    num_parameters += numel;
    num_bytes += numel * static_cast<std::int64_t>(at::elementSize(tensor.dtype));
    dtypes[dtype_name(tensor.dtype)] += numel;
    list.push_back({{"name", tensor.name}, {"shape", tensor.shape}, {"dtype", dtype_name(tensor.dtype)}});
  }
  facts["num_tensors"] = tensors.size();
  if (tensors.empty()) return;
  facts["num_parameters"] = num_parameters;
  facts["tensor_bytes"] = num_bytes;
  facts["parameters_by_dtype"] = dtypes;
  facts["tensors"] = std::move(list);
}

void fold_tensors(Facts& facts) {
  if (!facts.contains("tensors")) return;
  struct Row {
    Facts facts;
    std::int64_t count = 0;
  };
  std::vector<Row> rows;
  std::map<std::string, std::size_t> row_of;
  for (const Facts& tensor : facts["tensors"]) {
    const std::string pattern = pattern_of(tensor["name"].get<std::string>());
    const std::string key = pattern + tensor["shape"].dump() + tensor["dtype"].get<std::string>();
    const auto [found, is_new] = row_of.emplace(key, rows.size());
    if (is_new) rows.push_back({tensor, 0});
    Row& row = rows[found->second];
    if (++row.count == 2) row.facts["name"] = pattern;
  }
  Facts folded = Facts::array();
  for (Row& row : rows) {
    if (row.count > 1) row.facts["times"] = row.count;
    folded.push_back(std::move(row.facts));
  }
  facts["tensors"] = std::move(folded);
}

Facts inspect_file(const fs::path& path) {
  Facts facts{{"path", path.string()}, {"kind", "weights"}};
  const std::string magic = magic_of(path);
  const std::string extension = path.extension().string();
  facts["bytes"] = fs::file_size(path);
  if (path.filename().string().ends_with(".index.json")) {
    facts["format"] = "index of several files";
    add_tensors(facts, shapes_of(formats::Weights::open(path)));
  } else if (is_safetensors(magic)) {
    facts["format"] = "safetensors";
    const formats::SafetensorsFile file(path);
    if (!file.metadata().empty()) facts["metadata"] = file.metadata();
    std::vector<NamedShape> shapes;
    for (const auto& entry : file.entries()) shapes.push_back({entry.name, entry.shape, entry.dtype});
    add_tensors(facts, shapes);
  } else if (extension == ".jit" || extension == ".ts") {
    facts["format"] = "TorchScript";
    add_tensors(facts, shapes_of(formats::Weights::open(path)));
  } else if (extension == ".pickle" || extension == ".pkl") {
    facts["kind"] = "pickle";
    const MappedFile file(path);
    const formats::PickleValue value =
        formats::load_pickle(file.bytes(), path.string(), formats::UnknownGlobals::kKeep);
    add_content(facts, value);
    describe_single(facts, value);
  } else if (magic.starts_with("PK") || (!magic.empty() && magic[0] == '\x80')) {
    facts["kind"] = "torch file";
    facts["format"] = magic.starts_with("PK") ? "zip of torch.save" : "legacy file of torch.save";
    try {
      const formats::PickleValue value = formats::load_torch_file(path, formats::UnknownGlobals::kKeep);
      add_content(facts, value);
      describe_single(facts, value);
    } catch (const DataError&) {
      // TorchScript under another name, or no torch file: then the second reader's message is the one.
      add_tensors(facts, shapes_of(formats::Weights::open(path)));
      facts["format"] = "TorchScript";
    }
  } else {
    throw DataError(
        "{}: got a file that is no tar, safetensors, torch, TorchScript or pickle file, want one; hint: dfm inspect "
        "takes a data set, a checkpoint or a file of weights",
        path.string());
  }
  return facts;
}

bool is_encoder_folder(const fs::path& folder) {
  std::error_code ignored;
  if (fs::is_regular_file(folder / "config.json", ignored)) return true;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".safetensors" || extension == ".jit" || extension == ".bin") return true;
  }
  return false;
}

Facts inspect_encoder_folder(const fs::path& folder) {
  Facts facts{{"path", folder.string()}, {"kind", "folder of weights"}};
  const fs::path config = folder / "config.json";
  std::error_code ignored;
  if (fs::is_regular_file(config, ignored)) {
    const Facts parsed = Facts::parse(read_text_file(config), nullptr, false);
    if (!parsed.is_object()) throw DataError("{}: got text that is no JSON object, want one", config.string());
    Facts& shown = facts["config"] = Facts::object();
    for (const auto& [key, value] : parsed.items()) {
      if (!value.is_structured() || (value.is_array() && value.size() <= 16)) shown[key] = value;
    }
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file(ignored)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  Facts& rows = facts["files"] = Facts::array();
  for (const fs::path& file : files) {
    rows.push_back({{"file", file.filename().string()}, {"bytes", fs::file_size(file)}});
  }
  std::vector<NamedShape> tensors;
  for (const char* stem : {"model", "diffusion_pytorch_model"}) {
    const bool is_there = std::any_of(files.begin(), files.end(), [&](const fs::path& file) {
      const std::string name = file.filename().string();
      return name.starts_with(stem) || (name.starts_with("pytorch_model") && std::string(stem) == "model");
    });
    if (is_there && tensors.empty()) tensors = shapes_of(formats::Weights::open_folder(folder, stem));
  }
  for (const fs::path& file : files) {
    if (file.extension() != ".jit" || file.stem() == "autoencoder") continue;
    for (NamedShape& shape : shapes_of(formats::Weights::open(file))) {
      shape.name = file.stem().string() + ": " + shape.name;
      tensors.push_back(std::move(shape));
    }
  }
  if (!tensors.empty()) add_tensors(facts, tensors);
  return facts;
}

}  // namespace dfm::inspect
