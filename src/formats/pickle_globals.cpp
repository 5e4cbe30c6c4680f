// The globals that the restricted pickle reader understands. Each is answered here by building a value; no name from a
// file ever selects code beyond these tables.
#include <algorithm>
#include <array>
#include <cstring>

#include "dfm/base/file.h"
#include "formats/torch_reader.h"
#include "formats/torch_types.h"
#include "formats/unpickler.h"

namespace dfm::formats {
namespace {

constexpr std::array<std::string_view, 19> kKnown = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.storage._load_from_bytes",
    "torch.storage.UntypedStorage",
    "torch.storage.TypedStorage",
    "torch.serialization._get_layout",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
    "builtins.set",
    "builtins.frozenset",
    "builtins.complex",
    "builtins.bytearray",
    "builtins.bytes",
    "numpy.dtype",
};
constexpr std::array<std::string_view, 4> kKnownNumpy = {"numpy.ndarray", "multiarray._reconstruct",
                                                         "multiarray.scalar", "numeric._frombuffer"};

// numpy 1 and 2 name their core differently.
std::string numpy_name(const std::string& name) {
  for (const std::string_view prefix : {"numpy.core.", "numpy._core."}) {
    if (name.starts_with(prefix)) return name.substr(prefix.size());
  }
  return name == "numpy.ndarray" || name == "numpy.dtype" ? name : "";
}

// UTF-8 text of code points below 256 to the bytes they stand for: how protocol 2 writes bytes.
std::optional<std::string> latin1_bytes(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first < 0x80) {
      bytes.push_back(text[i]);
      continue;
    }
    if ((first != 0xC2 && first != 0xC3) || i + 1 == text.size()) return std::nullopt;
    const auto second = static_cast<unsigned char>(text[++i]);
    if ((second & 0xC0U) != 0x80) return std::nullopt;
    bytes.push_back(static_cast<char>(((first & 3U) << 6U) | (second & 0x3FU)));
  }
  return bytes;
}

PickleValue bytes_value(std::string bytes) {
  return {PickleBytes{std::make_shared<const std::string>(std::move(bytes))}};
}

}  // namespace

void Unpickler::push_global(const std::string& module, const std::string& name) {
  const std::string full = (module == "__builtin__" ? "builtins" : module) + "." + name;
  if (module == "torch" || module == "torch.storage") {
    if (const auto dtype = module == "torch" ? dtype_of_name(name) : std::nullopt) return push({*dtype});
    if (storage_type(name)) return push({PickleGlobal{"torch", name}});
  }
  const std::string numpy = numpy_name(full);
  const bool known = std::find(kKnown.begin(), kKnown.end(), full) != kKnown.end() ||
                     std::find(kKnownNumpy.begin(), kKnownNumpy.end(), numpy) != kKnownNumpy.end();
  if (!known && options_.unknown == UnknownGlobals::kRefuse) {
    fail(
        "got global {}, want tensors and plain values only; hint: nothing of it was run; the file holds objects that "
        "dfm does not read",
        printable(full));
  }
  push({known && module == "__builtin__" ? PickleGlobal{"builtins", name} : PickleGlobal{module, name}});
}

const PickleValue& Unpickler::argument(const PickleList& args, std::size_t index, const std::string& function) {
  if (index >= args.size()) fail("got {} arguments for {}, want more", args.size(), function);
  return args[index];
}

PickleValue Unpickler::call(const PickleValue& function, PickleValue args) {
  const auto* global = std::get_if<PickleGlobal>(&function.value);
  if (global == nullptr) fail("got a call of something that is not a global");
  const PickleList* items = args.tuple();
  if (items == nullptr) fail("got arguments of {} that are no tuple", printable(global->name));
  const std::string full = global->module + "." + global->name;
  if (!numpy_name(full).empty()) return call_numpy(*global, std::move(args));
  if (std::find(kKnown.begin(), kKnown.end(), full) == kKnown.end()) {
    if (options_.unknown == UnknownGlobals::kRefuse) fail("got a call of {}, want a known function", printable(full));
    return new_object(*global, std::move(args));
  }
  if (global->module.starts_with("torch")) return call_torch(full, *items);
  return call_builtin(full, *items);
}

PickleValue Unpickler::call_builtin(const std::string& name, const PickleList& args) {
  if (name == "collections.OrderedDict") {
    PickleValue result = new_dict();
    if (args.empty()) return result;
    const PickleList* pairs = args[0].list();
    if (pairs == nullptr) fail("got an OrderedDict of something that is not a list of pairs");
    auto& dict = *std::get<std::shared_ptr<PickleDict>>(result.value);
    for (const PickleValue& pair : *pairs) {
      const PickleList* items = pair.tuple() != nullptr ? pair.tuple() : pair.list();
      if (items == nullptr || items->size() != 2) fail("got an OrderedDict of something that is not a list of pairs");
      dict.emplace_back((*items)[0], (*items)[1]);
    }
    return result;
  }
  if (name == "builtins.set" || name == "builtins.frozenset") {
    if (args.empty()) return new_list({});
    const PickleList* items = args[0].list() != nullptr ? args[0].list() : args[0].tuple();
    if (items == nullptr) fail("got a set of something that is not a list");
    return new_list(*items);
  }
  if (name == "builtins.complex") {
    if (args.size() != 2) fail("got {} arguments for complex, want 2", args.size());
    return new_tuple(args);
  }
  // _codecs.encode(text, 'latin1'), bytearray(text, 'latin-1'), bytearray(bytes), bytes(), bytearray()
  if (args.empty()) return bytes_value("");
  if (args[0].bytes() != nullptr) return args[0];
  if (args.size() != 2 || args[0].text() == nullptr || args[1].text() == nullptr ||
      (*args[1].text() != "latin1" && *args[1].text() != "latin-1")) {
    fail("got arguments of {} that are not a text and 'latin1'", name);
  }
  copied_bytes_ += args[0].text()->size();
  auto bytes = latin1_bytes(*args[0].text());
  if (!bytes) fail("got text beyond latin1 for {}", name);
  return bytes_value(std::move(*bytes));
}

std::vector<std::int64_t> Unpickler::as_sizes(const PickleValue& value, const char* what) {
  const PickleList* items = value.tuple() != nullptr ? value.tuple() : value.list();
  if (items == nullptr || items->size() > 64) fail("got a {} that is no tuple of at most 64 numbers", what);
  std::vector<std::int64_t> sizes;
  for (const PickleValue& item : *items) {
    if (item.integer() == nullptr || *item.integer() < 0) fail("got a {} with something that is no size", what);
    sizes.push_back(*item.integer());
  }
  return sizes;
}

PickleValue Unpickler::call_torch(const std::string& name, const PickleList& args) {
  if (name == "torch.Size")
    return new_tuple(args.empty() ? PickleList{} : PickleList(*[&] {
      const PickleList* items = args[0].tuple() != nullptr ? args[0].tuple() : args[0].list();
      if (items == nullptr) fail("got a torch.Size of something that is no tuple");
      return items;
    }()));
  if (name == "torch.device" || name == "torch.serialization._get_layout") {
    if (argument(args, 0, name).text() == nullptr) fail("got an argument of {} that is no text", name);
    const std::int64_t* index = args.size() > 1 ? args[1].integer() : nullptr;
    return {index == nullptr ? *args[0].text() : fmt::format("{}:{}", *args[0].text(), *index)};
  }
  if (name == "torch.storage._load_from_bytes") {
    const std::string* blob = argument(args, 0, name).bytes();
    if (blob == nullptr) fail("got a storage that is no bytes");
    return load_blob(*blob);
  }
  if (name.starts_with("torch._utils._rebuild_parameter")) {
    if (argument(args, 0, name).tensor() == nullptr) fail("got a parameter that is no tensor");
    return args[0];
  }
  if (!name.starts_with("torch._utils._rebuild_tensor")) fail("got a call of {}, want a function", name);
  const auto* storage = std::get_if<std::shared_ptr<PickleStorage>>(&argument(args, 0, name).value);
  const std::int64_t* offset = argument(args, 1, name).integer();
  if (storage == nullptr || offset == nullptr) fail("got a tensor without storage and offset");
  at::ScalarType dtype = (*storage)->dtype;
  if (name.ends_with("_v3")) {
    const auto declared = as_dtype(argument(args, 6, name));
    if (!declared || *declared == at::kBool) fail("got a tensor whose dtype is not known");
    dtype = *declared;
  }
  return {view_of(**storage, dtype, *offset, as_sizes(argument(args, 2, name), "tensor size"),
                  as_sizes(argument(args, 3, name), "tensor stride"))};
}

// The window must lie in the storage: torch itself would read beyond it.
at::Tensor Unpickler::view_of(const PickleStorage& storage, at::ScalarType dtype, std::int64_t offset,
                              const std::vector<std::int64_t>& size, const std::vector<std::int64_t>& stride) {
  if (size.size() != stride.size()) fail("got a tensor of {} sizes and {} strides", size.size(), stride.size());
  const auto item_bytes = static_cast<std::int64_t>(c10::elementSize(dtype));
  const auto storage_item_bytes = static_cast<std::int64_t>(c10::elementSize(storage.dtype));
  const std::int64_t first_byte = storage.offset * storage_item_bytes;
  const std::int64_t num_available = storage.numel * storage_item_bytes / item_bytes;
  std::int64_t numel = 1, last = offset, num_bytes = 0;
  bool overflow = offset < 0 || first_byte % item_bytes != 0;
  for (std::size_t i = 0; i < size.size(); ++i) {
    std::int64_t step = 0;
    overflow |= __builtin_mul_overflow(numel, size[i], &numel);
    overflow |= __builtin_mul_overflow(std::max<std::int64_t>(size[i] - 1, 0), stride[i], &step);
    overflow |= __builtin_add_overflow(last, step, &last);
  }
  overflow |= __builtin_mul_overflow(numel, item_bytes, &num_bytes);
  if (overflow || (numel > 0 && last >= num_available)) {
    fail("got a tensor that reaches beyond its storage of {} elements", num_available);
  }
  // Expanded tensors are larger than their storage; a small file must not grow to fill the memory when they are copied.
  constexpr std::int64_t kMaxExpandedBytes = std::int64_t{1} << 30;
  if (num_bytes > storage.numel * storage_item_bytes && num_bytes > kMaxExpandedBytes) {
    fail("got a tensor of {} bytes in a storage of {}", num_bytes, storage.numel * storage_item_bytes);
  }
  at::Tensor tensor = at::empty({0}, at::TensorOptions().dtype(dtype));
  if (numel == 0) return at::empty(size, tensor.options());
  return tensor.set_(storage.storage, first_byte / item_bytes + offset, size, stride);
}

PickleValue Unpickler::persistent(const PickleValue& id) {
  if (!options_.load_storage) fail("got a persistent id, want none outside torch files");
  const PickleList* items = id.tuple();
  if (items == nullptr || items->size() < 5 || (*items)[0].text() == nullptr || *(*items)[0].text() != "storage") {
    fail("got a persistent id that is no storage");
  }
  const auto* type = std::get_if<PickleGlobal>(&(*items)[1].value);
  // Undefined rather than an empty optional: g++ 12 sees the latter as maybe uninitialized.
  const at::ScalarType dtype =
      type == nullptr ? at::ScalarType::Undefined : storage_type(type->name).value_or(at::ScalarType::Undefined);
  const std::string* key = (*items)[2].text();
  const std::int64_t* numel = (*items)[4].integer();
  std::int64_t num_bytes = 0;
  if (dtype == at::ScalarType::Undefined || key == nullptr || numel == nullptr || *numel < 0 ||
      __builtin_mul_overflow(*numel, static_cast<std::int64_t>(c10::elementSize(dtype)), &num_bytes)) {
    fail("got a storage id without a known type, key and number of elements");
  }
  auto storage = std::make_shared<PickleStorage>();
  storage->storage = options_.load_storage({*key, dtype, *numel});
  storage->dtype = dtype;
  storage->numel = *numel;
  // Old files: a storage that is a window of another, (key, first element, number of elements).
  const PickleList* view = items->size() > 5 ? (*items)[5].tuple() : nullptr;
  if (view != nullptr) {
    const std::int64_t* first = view->size() == 3 ? (*view)[1].integer() : nullptr;
    const std::int64_t* count = view->size() == 3 ? (*view)[2].integer() : nullptr;
    if (first == nullptr || count == nullptr || *first < 0 || *count < 0 || *first > *numel ||
        *count > *numel - *first) {
      fail("got a storage window that reaches beyond its storage");
    }
    storage->offset = *first;
    storage->numel = *count;
  }
  return {std::move(storage)};
}

PickleValue Unpickler::load_blob(const std::string& blob) {
  constexpr int kMaxNesting = 2;
  if (options_.nesting >= kMaxNesting) fail("got torch files more than {} deep in each other", kMaxNesting);
  TorchSource source{as_bytes(blob), options_.name, UnknownGlobals::kRefuse, nullptr, options_.nesting + 1};
  PickleValue value = read_torch(source);
  if (!std::holds_alternative<std::shared_ptr<PickleStorage>>(value.value)) {
    fail("got a torch file inside the pickle that holds no storage");
  }
  return value;
}

std::optional<at::ScalarType> Unpickler::as_dtype(const PickleValue& value) const {
  if (const auto* dtype = std::get_if<at::ScalarType>(&value.value)) return *dtype;
  const PickleObject* object = value.object();
  if (object == nullptr) return std::nullopt;
  const auto* dtype = std::get_if<at::ScalarType>(&object->resolved.value);
  return dtype == nullptr ? std::nullopt : std::optional(*dtype);
}

PickleValue Unpickler::call_numpy(const PickleGlobal& function, PickleValue args) {
  const PickleList& items = *args.tuple();
  const std::string name = numpy_name(function.module + "." + function.name);
  if (name == "numpy.dtype") {
    const std::string* code = argument(items, 0, name).text();
    const std::size_t skip = code != nullptr && code->find_first_of("<|=") == 0 ? 1 : 0;
    const auto dtype = code == nullptr ? std::nullopt : dtype_of_numpy(code->substr(skip));
    if (!dtype && options_.unknown == UnknownGlobals::kRefuse) {
      fail("got numpy type '{}', want numbers", code == nullptr ? "?" : printable(*code));
    }
    PickleValue result = new_object({"numpy", "dtype"}, std::move(args));
    if (dtype) std::get<std::shared_ptr<PickleObject>>(result.value)->resolved = {*dtype};
    return result;
  }
  if (name == "multiarray._reconstruct") return new_object({"numpy", "ndarray"}, new_tuple({}));
  if (name == "multiarray.scalar" || name == "numeric._frombuffer") {
    const bool is_scalar = name == "multiarray.scalar";
    const auto dtype = as_dtype(argument(items, is_scalar ? 0 : 1, name));
    const std::string* data = argument(items, is_scalar ? 1 : 0, name).bytes();
    if (dtype && data != nullptr) {
      if (is_scalar) return numpy_scalar(*data, *dtype);
      const std::string* order = argument(items, 3, name).text();
      return {numpy_tensor(*data, *dtype, as_sizes(argument(items, 2, name), "numpy shape"),
                           order != nullptr && *order == "F")};
    }
  }
  if (options_.unknown == UnknownGlobals::kRefuse) fail("got numpy data of an unknown type, want numbers");
  return new_object(function, std::move(args));
}

PickleValue Unpickler::numpy_scalar(std::string_view data, at::ScalarType dtype) {
  if (c10::isComplexType(dtype)) fail("got a complex numpy scalar, want a real one");
  const at::Tensor value = numpy_tensor(data, dtype, {}, false);
  if (dtype == at::kBool) return {value.item<bool>()};
  if (c10::isFloatingType(dtype)) return {value.to(at::kDouble).item<double>()};
  return {value.to(at::kLong).item<std::int64_t>()};
}

at::Tensor Unpickler::numpy_tensor(std::string_view data, at::ScalarType dtype, const std::vector<std::int64_t>& shape,
                                   bool fortran) {
  std::int64_t num_bytes = static_cast<std::int64_t>(c10::elementSize(dtype));
  bool overflow = false;
  for (const std::int64_t size : shape) overflow |= __builtin_mul_overflow(num_bytes, size, &num_bytes);
  if (overflow || num_bytes != static_cast<std::int64_t>(data.size())) {
    fail("got {} bytes of numpy data, want what its shape says", data.size());
  }
  if (dtype == at::kBool) check_bools(as_bytes(data), options_.name);
  std::vector<std::int64_t> stored = shape;
  if (fortran) std::reverse(stored.begin(), stored.end());
  at::Tensor tensor = at::empty(stored, at::TensorOptions().dtype(dtype));
  if (!data.empty()) std::memcpy(tensor.mutable_data_ptr(), data.data(), data.size());
  if (fortran) {
    std::vector<std::int64_t> order(shape.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(order.size() - 1 - i);
    tensor = tensor.permute(order).contiguous();
  }
  return tensor;
}

void Unpickler::build(PickleValue& target, PickleValue state) {
  // Attributes of an OrderedDict (`_metadata` of a state dict) and of a parameter say nothing that dfm needs.
  if (target.dict() != nullptr || target.tensor() != nullptr) return;
  auto* object = std::get_if<std::shared_ptr<PickleObject>>(&target.value);
  if (object == nullptr) fail("got a state for something that takes none");
  if ((*object)->global.module == "numpy") build_numpy(**object, state);
  (*object)->state = std::move(state);
}

void Unpickler::build_numpy(PickleObject& target, const PickleValue& state) {
  const PickleList* items = state.tuple();
  if (items == nullptr) fail("got a numpy state that is no tuple");
  if (target.global.name == "dtype") {
    const std::string* order = argument(*items, 1, "numpy.dtype").text();
    if (order == nullptr || *order == ">") fail("got big-endian numpy data, want little-endian");
    return;
  }
  if (target.global.name != "ndarray") return;
  const auto dtype = as_dtype(argument(*items, 2, "numpy.ndarray"));
  const bool* fortran = argument(*items, 3, "numpy.ndarray").boolean();
  const std::string* data = argument(*items, 4, "numpy.ndarray").bytes();
  if (!dtype || fortran == nullptr || data == nullptr) {
    if (options_.unknown == UnknownGlobals::kRefuse) fail("got a numpy array of something that is no number");
    return;
  }
  target.resolved = {numpy_tensor(*data, *dtype, as_sizes((*items)[1], "numpy shape"), *fortran)};
}

}  // namespace dfm::formats
