#include "dfm/formats/weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <fmt/ranges.h>
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/torch_file.h"
#include "formats/mapped_tensor.h"
#include "formats/torch_reader.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace fs = std::filesystem;

struct Weights::State {
  explicit State(fs::path opened) : path(std::move(opened)) {}
  void add(Entry entry, std::function<at::Tensor()> read);

  fs::path path;
  std::vector<Entry> entries;
  std::vector<std::function<at::Tensor()>> readers;  // one an entry
  std::unordered_map<std::string_view, std::size_t> by_name;
};

void Weights::State::add(Entry entry, std::function<at::Tensor()> read) {
  entries.push_back(std::move(entry));
  readers.push_back(std::move(read));
}

namespace {

using Entry = Weights::Entry;
using AddTensor = std::function<void(Entry, std::function<at::Tensor()>)>;

void add_safetensors(const fs::path& path, const AddTensor& add) {
  const SafetensorsFile file(path);
  for (const SafetensorsFile::Entry& entry : file.entries()) {
    add({entry.name, entry.shape, entry.dtype}, [file, entry] { return file.read(entry); });
  }
}

// Modules of a TorchScript archive are objects of classes under __torch__ whose states are dicts.
void collect_script(const PickleValue& value, const std::string& prefix,
                    std::vector<std::pair<std::string, at::Tensor>>& result) {
  const PickleObject* object = value.object();
  if (object == nullptr || !object->global.module.starts_with("__torch__")) return;
  if (object->state.dict() == nullptr) return;
  for (const auto& [key, item] : *object->state.dict()) {
    if (key.text() == nullptr) continue;
    const std::string name = prefix.empty() ? *key.text() : prefix + "." + *key.text();
    if (item.tensor() != nullptr) result.emplace_back(name, *item.tensor());
    collect_script(item, name, result);
  }
}

void add_torch(const fs::path& path, const AddTensor& add) {
  const auto file = std::make_shared<const MappedFile>(path);
  StoragePlaces places;
  TorchSource source{file->bytes(), path.string(), UnknownGlobals::kKeep, file, 0, &places, true};
  const PickleValue value = read_torch(source);
  std::vector<std::pair<std::string, at::Tensor>> tensors = named_tensors(value);
  collect_script(value, "", tensors);
  PickleValue constants;
  if (tensors.empty() && value.object() != nullptr && is_torch_zip(source.bytes)) {
    // A frozen module: its parameters are constants of the code, without the names they had.
    constants = read_script_constants(source);
    if (const PickleList* items = constants.tuple()) {
      for (std::size_t i = 0; i < items->size(); ++i) {
        if ((*items)[i].tensor() != nullptr)
          tensors.emplace_back(fmt::format("CONSTANTS.c{}", i), *(*items)[i].tensor());
      }
    }
  }
  for (auto& [name, tensor] : tensors) {
    Entry entry{name, tensor.sizes().vec(), tensor.scalar_type()};
    const auto place = places.find(tensor.storage().unsafeGetStorageImpl());
    if (place == places.end()) {  // of a pickle within the pickle, or empty
      add(std::move(entry), [tensor = tensor] { return tensor; });
      continue;
    }
    const StorageWindow window{place->second, tensor.scalar_type(), tensor.storage_offset(), tensor.sizes().vec(),
                               tensor.strides().vec()};
    add(std::move(entry), [file, window] { return mapped_tensor(file, window); });
  }
}

void add_file(const fs::path& path, const AddTensor& add, bool is_shard);

// {"metadata": {...}, "weight_map": {tensor: file}}: the files lie beside the index.
std::map<std::string, std::vector<std::string>> read_index(const fs::path& path) {
  constexpr std::uintmax_t kMaxIndexBytes = 100'000'000;
  if (fs::file_size(path) > kMaxIndexBytes) {
    throw DataError("{}: got an index of more than {} bytes", path.string(), kMaxIndexBytes);
  }
  const nlohmann::json index = nlohmann::json::parse(read_text_file(path), nullptr, /*allow_exceptions=*/false);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    throw DataError("{}: got JSON without weight_map, want an index of weights", path.string());
  }
  std::map<std::string, std::vector<std::string>> names_of_file;
  for (const auto& [name, file] : map->items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    if (shard.empty() || fs::path(shard).filename() != shard || shard == "." || shard == "..") {
      throw DataError("{}: tensor {}: got file '{}', want the name of one beside the index", path.string(),
                      printable(name), printable(shard));
    }
    names_of_file[shard].push_back(name);
  }
  return names_of_file;
}

void add_sharded(const fs::path& path, const AddTensor& add) {
  const auto names_of_file = read_index(path);
  for (const auto& [shard, names] : names_of_file) {
    const fs::path file = path.parent_path() / shard;
    if (!fs::exists(file)) {
      throw DataError("{}: got no such file, want it ({} names it)", file.string(), path.filename().string());
    }
    std::unordered_map<std::string, std::pair<Entry, std::function<at::Tensor()>>> part;
    const AddTensor collect = [&part](Entry entry, std::function<at::Tensor()> read) {
      std::string name = entry.name;
      part.emplace(std::move(name), std::pair(std::move(entry), std::move(read)));
    };
    add_file(file, collect, /*is_shard=*/true);
    for (const std::string& name : names) {
      const auto found = part.find(name);
      if (found == part.end()) {
        throw DataError("{}: got no tensor {}, want it ({} says so)", file.string(), printable(name),
                        path.filename().string());
      }
      add(found->second.first, found->second.second);
    }
  }
}

// safetensors begin with the length of their header, which is far below what text is as a number.
bool is_safetensors(std::span<const std::byte> head) {
  std::uint64_t length = 0;
  if (head.size() < 9) return false;
  std::memcpy(&length, head.data(), sizeof length);
  return length <= 100'000'000 && head[8] == std::byte{'{'};
}

void add_file(const fs::path& path, const AddTensor& add, bool is_shard) {
  if (!fs::exists(path)) throw DataError("{}: got no such file, want weights", path.string());
  if (!fs::is_regular_file(path)) throw DataError("{}: got something that is not a file, want weights", path.string());
  std::string head(32, '\0');
  {
    const File file(path, File::Mode::kRead);
    head.resize(static_cast<std::size_t>(std::min<std::uint64_t>(head.size(), file.size())));
    if (!head.empty()) file.read_at(0, std::as_writable_bytes(std::span(head.data(), head.size())));
  }
  const auto bytes = as_bytes(head);
  if (is_safetensors(bytes)) return add_safetensors(path, add);
  if (is_torch_zip(bytes) || is_legacy(bytes)) return add_torch(path, add);
  if (head.starts_with('{') && !is_shard) return add_sharded(path, add);
  if (head.starts_with("version https://git-lfs")) {
    throw DataError("{}: got a git-lfs pointer, want the weights; hint: run `git lfs pull` in its folder",
                    path.string());
  }
  throw DataError("{}: got {}, want safetensors, an index of them, a file of torch.save or a TorchScript archive",
                  path.string(), head.empty() ? "an empty file" : "something else");
}

}  // namespace

std::vector<std::string> index_files(const fs::path& index) {
  std::vector<std::string> files;
  for (const auto& [file, names] : read_index(index)) files.push_back(file);
  return files;
}

Weights Weights::open(const fs::path& path) {
  auto state = std::make_shared<State>(path);
  const AddTensor add = [&](Entry entry, std::function<at::Tensor()> read) {
    state->add(std::move(entry), std::move(read));
  };
  add_file(path, add, /*is_shard=*/false);
  if (state->entries.empty()) throw DataError("{}: got no tensor, want weights", path.string());
  for (std::size_t i = 0; i < state->entries.size(); ++i) {
    if (!state->by_name.emplace(state->entries[i].name, i).second) {
      throw DataError("{}: tensor {}: got it twice", path.string(), printable(state->entries[i].name));
    }
  }
  return Weights(std::move(state));
}

Weights Weights::open_folder(const fs::path& folder, const std::string& stem) {
  std::vector<std::string> candidates = {stem + ".safetensors", stem + ".safetensors.index.json"};
  if (stem == "model") {
    candidates.emplace_back("pytorch_model.bin");
    candidates.emplace_back("pytorch_model.bin.index.json");
  }
  for (const std::string& name : candidates) {
    if (fs::exists(folder / name)) return open(folder / name);
  }
  throw DataError("{}: got no weights, want one of {}", folder.string(), fmt::join(candidates, ", "));
}

const std::vector<Weights::Entry>& Weights::entries() const { return state_->entries; }
const fs::path& Weights::path() const { return state_->path; }

const Weights::Entry* Weights::find(std::string_view name) const {
  const auto found = state_->by_name.find(name);
  return found == state_->by_name.end() ? nullptr : &state_->entries[found->second];
}

at::Tensor Weights::read(std::string_view name) const {
  const auto found = state_->by_name.find(name);
  if (found == state_->by_name.end()) {
    throw DataError("{}: got no tensor {}, want it", state_->path.string(), printable(name));
  }
  return state_->readers[found->second]();
}

}  // namespace dfm::formats
