#include "dfm/formats/torch_file.h"

#include <cstring>
#include <map>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/torch_zip.h"
#include "formats/torch_reader.h"
#include "formats/torch_types.h"
#include "formats/unpickler.h"

namespace dfm::formats {
namespace {

std::span<const std::byte> entry_bytes(const TorchSource& source, const ZipEntry& entry) {
  return source.bytes.subspan(static_cast<std::size_t>(entry.data_offset), static_cast<std::size_t>(entry.size));
}

void check_crc(const TorchSource& source, const ZipEntry& entry) {
  const std::uint32_t crc = zip_crc32(entry_bytes(source, entry));
  if (crc != entry.crc32) {
    throw DataError("{}: entry {}: got crc32 {:08x}, want {:08x}; hint: the file is damaged", source.name,
                    printable(entry.name), crc, entry.crc32);
  }
}

// `part` is "data" or, in TorchScript archives, "constants": PART.pkl with its storages PART/KEY.
PickleValue read_zip(const TorchSource& source, const std::string& part) {
  const auto entries =
      read_zip_directory(read_from(source.bytes, source.name), source.bytes.size(), source.name, source.allow_script);
  std::map<std::string, const ZipEntry*> by_name;
  const std::string top = entries.empty() ? "" : entries[0].name.substr(0, entries[0].name.find('/') + 1);
  for (const ZipEntry& entry : entries) by_name[entry.name] = &entry;
  const auto find = [&](const std::string& name) {
    const auto found = by_name.find(top + name);
    return found == by_name.end() || found->second->is_compressed ? nullptr : found->second;
  };
  const ZipEntry* pickle = find(part + ".pkl");
  if (top.empty() || pickle == nullptr) {
    throw DataError("{}: got a zip without an entry FOLDER/{}.pkl, want a file of torch.save", source.name, part);
  }
  if (!source.allow_script && find("constants.pkl") != nullptr) {
    throw DataError("{}: got a TorchScript archive, want a file of torch.save", source.name);
  }
  if (const ZipEntry* order = find("byteorder"); order != nullptr && as_text(entry_bytes(source, *order)) != "little") {
    throw DataError("{}: got big-endian data, want little-endian", source.name);
  }
  check_crc(source, *pickle);
  std::map<std::string, at::Storage> storages;
  const LoadStorage load_storage = [&](const StorageRequest& request) {
    const auto num_bytes = static_cast<std::uint64_t>(request.numel) * c10::elementSize(request.dtype);
    const ZipEntry* entry = find(part + "/" + request.key);
    if ((entry == nullptr && num_bytes > 0) || (entry != nullptr && entry->size != num_bytes)) {
      throw DataError("{}: entry {}{}/{}: got {}, want {} bytes", source.name, printable(top), part,
                      printable(request.key), entry == nullptr ? "none" : fmt::format("{} bytes", entry->size),
                      num_bytes);
    }
    at::Storage& storage = storages[request.key];
    const bool is_deferred = source.places != nullptr;
    if (!storage) {
      const bool has_data = entry != nullptr && !is_deferred;
      if (has_data && source.owner == nullptr) check_crc(source, *entry);
      storage =
          at::Storage(at::Storage::use_byte_size_t(), static_cast<std::int64_t>(num_bytes),
                      has_data ? storage_data(source, entry_bytes(source, *entry)) : at::DataPtr(nullptr, at::kCPU));
      if (is_deferred && entry != nullptr) {
        (*source.places)[storage.unsafeGetStorageImpl()] = entry_bytes(source, *entry);
      }
    }
    if (request.dtype == at::kBool && entry != nullptr && !is_deferred) {
      check_bools(entry_bytes(source, *entry), source.name);
    }
    return storage;
  };
  Unpickler unpickler(entry_bytes(source, *pickle), {source.name, source.unknown, load_storage, source.nesting});
  PickleValue value = unpickler.load();
  if (unpickler.position() != pickle->size) throw DataError("{}: got bytes after the end of {}.pkl", source.name, part);
  return value;
}

void collect(const PickleValue& value, const std::string& prefix,
             std::vector<std::pair<std::string, at::Tensor>>& result) {
  if (value.tensor() != nullptr) result.emplace_back(prefix, *value.tensor());
  if (value.dict() == nullptr) return;
  for (const auto& [key, item] : *value.dict()) {
    std::string name = prefix.empty() ? "" : prefix + ".";
    if (key.text() != nullptr) {
      name += *key.text();
    } else if (key.integer() != nullptr) {
      name += std::to_string(*key.integer());
    } else {
      continue;
    }
    collect(item, name, result);
  }
}

at::Tensor only_tensor(const PickleValue& value, const std::string& name) {
  if (value.tensor() == nullptr) throw DataError("{}: got a value that is no tensor, want one tensor", name);
  const at::Tensor& tensor = *value.tensor();
  const bool fills_storage = tensor.is_contiguous() && tensor.storage().nbytes() == tensor.nbytes();
  return fills_storage ? tensor : tensor.clone(at::MemoryFormat::Contiguous);
}

}  // namespace

at::DataPtr storage_data(const TorchSource& source, std::span<const std::byte> piece) {
  constexpr std::uintptr_t kLargestAlignment = 8;  // of any element type
  if (piece.empty()) return {nullptr, at::kCPU};
  if (source.owner == nullptr || reinterpret_cast<std::uintptr_t>(piece.data()) % kLargestAlignment != 0) {
    at::DataPtr copy = at::getCPUAllocator()->allocate(piece.size());
    std::memcpy(copy.get(), piece.data(), piece.size());
    return copy;
  }
  using Owner = std::shared_ptr<const void>;
  return {const_cast<std::byte*>(piece.data()), new Owner(source.owner),
          [](void* owner) { delete static_cast<Owner*>(owner); }, at::kCPU};
}

void check_bools(std::span<const std::byte> bytes, const std::string& name) {
  for (const std::byte byte : bytes) {
    if (byte > std::byte{1})
      throw DataError("{}: got {} in a tensor of type bool, want 0 or 1", name, static_cast<int>(byte));
  }
}

bool is_torch_zip(std::span<const std::byte> bytes) { return as_text(bytes).starts_with("PK\x03\x04"); }

PickleValue read_script_constants(const TorchSource& source) { return read_zip(source, "constants"); }

PickleValue read_torch(const TorchSource& source) {
  if (is_torch_zip(source.bytes)) return read_zip(source, "data");
  if (is_legacy(source.bytes)) return read_legacy(source);
  throw DataError("{}: got {}, want a file of torch.save (zip or legacy)", source.name,
                  source.bytes.empty() ? "an empty file" : "something else");
}

PickleValue load_pickle(std::span<const std::byte> bytes, const std::string& name, UnknownGlobals unknown) {
  Unpickler unpickler(bytes, {name, unknown, {}, 0});
  PickleValue value = unpickler.load();
  if (unpickler.position() != bytes.size()) {
    throw DataError("{}: got {} bytes after the end of the pickle, want none", name,
                    bytes.size() - unpickler.position());
  }
  return value;
}

PickleValue load_data_pickle(std::span<const std::byte> pickle, const std::string& name,
                             const LoadStorage& load_storage) {
  Unpickler unpickler(pickle, {name, UnknownGlobals::kRefuse, load_storage, 0});
  PickleValue value = unpickler.load();
  if (unpickler.position() != pickle.size()) throw DataError("{}: got bytes after the end of data.pkl", name);
  return value;
}

PickleValue load_torch_file(const std::filesystem::path& path, UnknownGlobals unknown) {
  const auto file = std::make_shared<const MappedFile>(path);
  return read_torch({file->bytes(), path.string(), unknown, file, 0});
}

PickleValue load_torch_bytes(std::span<const std::byte> bytes, const std::string& name, UnknownGlobals unknown) {
  return read_torch({bytes, name, unknown, nullptr, 0});
}

at::Tensor load_pth_tensor(std::span<const std::byte> bytes, const std::string& name) {
  return only_tensor(load_torch_bytes(bytes, name), name);
}

at::Tensor load_pickle_tensor(std::span<const std::byte> bytes, const std::string& name) {
  return only_tensor(is_legacy(bytes) ? load_torch_bytes(bytes, name) : load_pickle(bytes, name), name);
}

std::vector<std::pair<std::string, at::Tensor>> named_tensors(const PickleValue& value) {
  std::vector<std::pair<std::string, at::Tensor>> result;
  collect(value, "", result);
  return result;
}

}  // namespace dfm::formats
