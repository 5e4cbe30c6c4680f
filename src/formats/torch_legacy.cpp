// The layout of torch.save before zip files, still what pickle.dumps(tensor) holds: five pickles (magic, version,
// system, object, storage keys), then for each key a 64-bit count and the raw data.
#include <cstring>
#include <map>

#include "dfm/base/file.h"
#include "formats/torch_reader.h"
#include "formats/torch_types.h"
#include "formats/unpickler.h"

namespace dfm::formats {
namespace {

constexpr std::string_view kMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 15);

struct Declared {
  at::Storage storage;
  std::int64_t numel = 0;
  at::ScalarType dtype = at::kByte;
  bool holds_bools = false;
};

}  // namespace

bool is_legacy(std::span<const std::byte> bytes) { return as_text(bytes).starts_with(kMagic); }

PickleValue read_legacy(const TorchSource& source) {
  std::span<const std::byte> rest = source.bytes.subspan(kMagic.size());
  std::map<std::string, Declared> declared;
  // Data come after the object that names them: storages get their size now and their data when their place is known.
  const LoadStorage declare = [&](const StorageRequest& request) {
    Declared& entry = declared[request.key];
    const auto num_bytes = request.numel * static_cast<std::int64_t>(c10::elementSize(request.dtype));
    if (!entry.storage) {
      entry = {at::Storage(at::Storage::use_byte_size_t(), num_bytes, at::DataPtr(nullptr, at::kCPU)), request.numel,
               request.dtype};
    } else if (static_cast<std::int64_t>(entry.storage.nbytes()) != num_bytes) {
      throw DataError("{}: storage {}: got two sizes", source.name, printable(request.key));
    }
    entry.holds_bools |= request.dtype == at::kBool;
    return entry.storage;
  };
  const auto next = [&](const LoadStorage& load_storage) {
    Unpickler unpickler(rest, {source.name, source.unknown, load_storage, source.nesting});
    PickleValue value = unpickler.load();
    rest = rest.subspan(unpickler.position());
    return value;
  };
  const PickleValue version = next({});
  if (version.integer() == nullptr || *version.integer() != 1001) {
    throw DataError("{}: got another version of the legacy torch format, want 1001", source.name);
  }
  const PickleValue system = next({});
  const PickleValue* little_endian = system.find("little_endian");
  if (little_endian == nullptr || little_endian->boolean() == nullptr || !*little_endian->boolean()) {
    throw DataError("{}: got big-endian data, want little-endian", source.name);
  }
  PickleValue object = next(declare);
  const PickleValue keys = next({});
  if (keys.list() == nullptr) throw DataError("{}: got no list of storages (legacy torch file)", source.name);
  for (const PickleValue& key : *keys.list()) {
    const auto found = key.text() == nullptr ? declared.end() : declared.find(*key.text());
    if (found == declared.end()) throw DataError("{}: got data of a storage that nothing uses", source.name);
    Declared& entry = found->second;
    const std::size_t num_bytes = entry.storage.nbytes();
    std::int64_t count = 0;
    if (rest.size() < sizeof count || rest.size() - sizeof count < num_bytes) {
      throw DataError("{}: storage {}: got {} bytes, want {} (legacy torch file); hint: the file is cut short",
                      source.name, printable(found->first), rest.size(), num_bytes + sizeof count);
    }
    std::memcpy(&count, rest.data(), sizeof count);
    // Writers of untyped storages count bytes, others elements.
    if (count != entry.numel && count != static_cast<std::int64_t>(num_bytes)) {
      throw DataError("{}: storage {}: got {} elements of data, want {} (legacy torch file)", source.name,
                      printable(found->first), count, entry.numel);
    }
    const auto data = rest.subspan(sizeof count, num_bytes);
    rest = rest.subspan(sizeof count + num_bytes);
    if (source.places != nullptr) {
      (*source.places)[entry.storage.unsafeGetStorageImpl()] = data;
    } else {
      if (entry.holds_bools) check_bools(data, source.name);
      entry.storage.set_data_ptr_noswap(storage_data(source, data));
    }
    entry.numel = -1;
  }
  for (const auto& [key, entry] : declared) {
    if (entry.numel >= 0 && entry.storage.nbytes() > 0) {
      throw DataError("{}: storage {}: got no data (legacy torch file)", source.name, printable(key));
    }
  }
  return object;
}

}  // namespace dfm::formats
