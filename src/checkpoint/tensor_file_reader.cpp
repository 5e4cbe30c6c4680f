#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>

#include "checkpoint/errors.h"
#include "checkpoint/integrity.h"
#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/base/log.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/torch_file.h"

namespace dfm::checkpoint {
namespace {

void collect_scalars(const formats::PickleValue& value, Scalars& scalars) {
  if (value.dict() == nullptr) return;
  for (const auto& [key, item] : *value.dict()) {
    if (key.text() == nullptr) continue;
    if (item.integer() != nullptr) scalars[*key.text()] = *item.integer();
    if (item.real() != nullptr) scalars[*key.text()] = *item.real();
    if (item.boolean() != nullptr) scalars[*key.text()] = *item.boolean();
    if (item.text() != nullptr) scalars[*key.text()] = *item.text();
  }
}

}  // namespace

struct TensorFile::State {
  std::filesystem::path path;
  std::vector<Entry> entries;
  Scalars scalars;
  std::unordered_map<std::string, std::size_t> index;
  // A file of dfm's: data are read and verified on demand.
  std::optional<File> file;
  std::vector<formats::ZipEntry> data;  // of each tensor; empty tensors have a nameless one
  std::map<std::string, BlockSums> sums;
  // A file of others: tensors are views of it.
  std::vector<at::Tensor> views;

  void open();
  void open_foreign();
  void add(const std::string& name, const at::Tensor& tensor);
  void read_verified(const formats::ZipEntry& entry, std::span<std::byte> out, const std::string& what) const;
  at::Tensor read(const Entry& entry, const formats::ZipEntry& place) const;
};

void TensorFile::State::add(const std::string& name, const at::Tensor& tensor) {
  index[name] = entries.size();
  entries.push_back({name, tensor.sizes().vec(), tensor.scalar_type()});
}

void TensorFile::State::open() {
  file.emplace(path, File::Mode::kRead);
  const formats::ReadAt read_at = [this](std::uint64_t offset, std::span<std::byte> bytes) {
    file->read_at(offset, bytes);
  };
  std::string magic(std::min<std::uint64_t>(file->size(), 4), '\0');
  file->read_at(0, std::as_writable_bytes(std::span(magic)));
  if (magic != "PK\x03\x04") return open_foreign();
  auto zip = formats::read_zip_directory(read_at, file->size(), path.string());
  const std::string top = zip.empty() ? "" : zip[0].name.substr(0, zip[0].name.find('/') + 1);
  if (zip.empty() || zip.back().name != top + "integrity") return open_foreign();

  std::string text(zip.back().size, '\0');
  file->read_at(zip.back().data_offset, std::as_writable_bytes(std::span(text)));
  zip.pop_back();
  sums = parse_integrity(text, zip, path.string());
  std::unordered_map<std::string, const formats::ZipEntry*> by_name;
  for (const formats::ZipEntry& entry : zip) by_name[entry.name] = &entry;
  const auto pickle_entry = by_name.find(top + "data.pkl");
  if (pickle_entry == by_name.end()) throw CheckpointError("{}: got no entry data.pkl, want one", path.string());
  std::string pickle(pickle_entry->second->size, '\0');
  read_verified(*pickle_entry->second, std::as_writable_bytes(std::span(pickle)), "the index");

  // Storages get no data here: the tensors only tell shape, type and which entry is theirs.
  std::unordered_map<const c10::StorageImpl*, const formats::ZipEntry*> entry_of;
  const formats::LoadStorage load_storage = [&](const formats::StorageRequest& request) {
    const auto found = by_name.find(top + "data/" + request.key);
    const auto num_bytes = static_cast<std::uint64_t>(request.numel) * c10::elementSize(request.dtype);
    if (found == by_name.end() || found->second->size != num_bytes) {
      throw CheckpointError("{}: entry {}data/{}: got no data of {} bytes, want them", path.string(), top, request.key,
                            num_bytes);
    }
    at::Storage storage(at::Storage::use_byte_size_t(), static_cast<std::int64_t>(num_bytes),
                        at::DataPtr(nullptr, at::kCPU));
    entry_of[storage.unsafeGetStorageImpl()] = found->second;
    return storage;
  };
  const formats::PickleValue value = formats::load_data_pickle(as_bytes(pickle), path.string(), load_storage);
  for (const auto& [name, tensor] : formats::named_tensors(value)) {
    const auto found = entry_of.find(tensor.storage().unsafeGetStorageImpl());
    if (found == entry_of.end() && tensor.numel() > 0)
      throw InternalError("{}: tensor {}: got no entry", path.string(), name);
    data.push_back(found == entry_of.end() ? formats::ZipEntry{} : *found->second);
    if (!tensor.is_contiguous() || tensor.nbytes() != data.back().size) {
      throw CheckpointError("{}: tensor {}: got a part of a storage, want all of one", path.string(), name);
    }
    add(name, tensor);
  }
  collect_scalars(value, scalars);
}

void TensorFile::State::open_foreign() {
  file.reset();
  const formats::PickleValue value = formats::load_torch_file(path);
  for (const auto& [name, tensor] : formats::named_tensors(value)) {
    add(name, tensor);
    views.push_back(tensor);
  }
  collect_scalars(value, scalars);
  log::info("checkpoint", "{}: has no checksums, written by other software", path.string());
}

void TensorFile::State::read_verified(const formats::ZipEntry& entry, std::span<std::byte> out,
                                      const std::string& what) const {
  const BlockSums& want = sums.at(entry.name);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const std::uint64_t offset = i * kBlockBytes;
    const auto block = out.subspan(offset, std::min<std::uint64_t>(kBlockBytes, out.size() - offset));
    file->read_at(entry.data_offset + offset, block);
    if (const std::uint32_t got = crc32c(block); got != want[i]) {
      throw CheckpointError(
          "{}: {} (entry {}): got crc32c {:08x} at byte {}, want {:08x}; hint: the file is damaged, use another "
          "checkpoint",
          path.string(), what, entry.name, got, entry.data_offset + offset, want[i]);
    }
  }
}

at::Tensor TensorFile::State::read(const Entry& entry, const formats::ZipEntry& place) const {
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
  if (tensor.nbytes() > 0) {
    const std::span bytes(static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes());
    read_verified(place, bytes, "tensor " + entry.name);
    // Any other value of a C++ bool is undefined behaviour.
    if (entry.dtype == at::kBool &&
        std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; })) {
      throw CheckpointError("{}: tensor {}: got bools that are neither 0 nor 1", path.string(), entry.name);
    }
  }
  return tensor;
}

TensorFile::TensorFile(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  as_checkpoint_error([&] { state_->open(); });
}

TensorFile::~TensorFile() = default;

const std::vector<TensorFile::Entry>& TensorFile::entries() const { return state_->entries; }
const Scalars& TensorFile::scalars() const { return state_->scalars; }

at::Tensor TensorFile::read(const std::string& name) const {
  const auto found = state_->index.find(name);
  if (found == state_->index.end()) {
    std::vector<std::string> names;
    for (const Entry& entry : state_->entries) names.push_back(entry.name);
    const std::string nearest = nearest_name(name, names);
    throw CheckpointError("{}: got no tensor {}, want it{}", state_->path.string(), name,
                          nearest.empty() ? "" : "; hint: there is " + nearest);
  }
  const std::size_t i = found->second;
  return as_checkpoint_error([&] {
    if (state_->file) return state_->read(state_->entries[i], state_->data[i]);
    return state_->views[i].clone(at::MemoryFormat::Contiguous);
  });
}

NamedTensors TensorFile::read_all() const {
  NamedTensors result;
  for (const Entry& entry : state_->entries) result.emplace_back(entry.name, read(entry.name));
  return result;
}

}  // namespace dfm::checkpoint
