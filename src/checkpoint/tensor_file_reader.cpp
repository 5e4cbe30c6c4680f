#include <ATen/ATen.h>

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
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

std::uint64_t block_size(std::uint64_t entry_size, std::uint64_t block) {
  return std::min<std::uint64_t>(kBlockBytes, entry_size - block * kBlockBytes);
}

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
  std::uint32_t content_id = 0;
  // A file of others: tensors are views of it.
  std::vector<at::Tensor> views;

  void open();
  void open_foreign();
  void add(const std::string& name, const at::Tensor& tensor);
  // Block number `block` of an entry; `out` has its size.
  void read_block(const formats::ZipEntry& entry, std::uint64_t block, std::span<std::byte> out,
                  const std::string& what) const;
  void read_verified(const formats::ZipEntry& entry, std::span<std::byte> out, const std::string& what) const;
  void check_bools(const at::Tensor& tensor, const std::string& name) const;
  at::Tensor read(std::size_t i) const;
  // The slice's elements, in the file's type.
  void read_slice(std::size_t i, const comm::Slice& slice, const at::Tensor& out) const;
  void fill(const comm::WantedSlice& wanted) const;
  void check_wanted(const std::vector<comm::WantedSlice>& wanted) const;
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
  content_id = integrity_id(text);
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

void TensorFile::State::read_block(const formats::ZipEntry& entry, std::uint64_t block, std::span<std::byte> out,
                                   const std::string& what) const {
  const std::uint64_t offset = entry.data_offset + block * kBlockBytes;
  file->read_at(offset, out);
  const std::uint32_t want = sums.at(entry.name)[block];
  if (const std::uint32_t got = crc32c(out); got != want) {
    throw CheckpointError(
        "{}: {} (entry {}): got crc32c {:08x} at byte {}, want {:08x}; hint: the file is damaged, use another "
        "checkpoint",
        path.string(), what, entry.name, got, offset, want);
  }
}

void TensorFile::State::read_verified(const formats::ZipEntry& entry, std::span<std::byte> out,
                                      const std::string& what) const {
  for (std::uint64_t block = 0; block < num_blocks(entry.size); ++block)
    read_block(entry, block, out.subspan(block * kBlockBytes, block_size(entry.size, block)), what);
}

// Any other value of a C++ bool is undefined behaviour.
void TensorFile::State::check_bools(const at::Tensor& tensor, const std::string& name) const {
  if (tensor.scalar_type() != at::kBool) return;
  const std::span bytes(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes());
  if (std::any_of(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; }))
    throw CheckpointError("{}: tensor {}: got bools that are neither 0 nor 1", path.string(), name);
}

at::Tensor TensorFile::State::read(std::size_t i) const {
  if (!file) return views[i].clone(at::MemoryFormat::Contiguous);
  at::Tensor tensor = at::empty(entries[i].shape, at::TensorOptions().dtype(entries[i].dtype));
  if (tensor.nbytes() > 0) {
    read_verified(data[i], {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()},
                  "tensor " + entries[i].name);
    check_bools(tensor, entries[i].name);
  }
  return tensor;
}

void TensorFile::State::read_slice(std::size_t i, const comm::Slice& slice, const at::Tensor& out) const {
  const std::uint64_t element = c10::elementSize(entries[i].dtype);
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  const at::Tensor whole = file ? at::Tensor() : views[i].contiguous();
  const std::string what = "tensor " + entries[i].name;
  std::vector<std::byte> buffer;  // the block that was read last: runs are in ascending order
  std::uint64_t held = 0;
  comm::for_each_run(entries[i].shape, slice, [&](std::int64_t at, std::int64_t own, std::int64_t count) {
    std::uint64_t from = static_cast<std::uint64_t>(at) * element, left = static_cast<std::uint64_t>(count) * element;
    std::byte* target = to + static_cast<std::uint64_t>(own) * element;
    if (!file) {
      std::memcpy(target, static_cast<const std::byte*>(whole.const_data_ptr()) + from, left);
      return;
    }
    while (left > 0) {
      const std::uint64_t block = from / kBlockBytes, within = from % kBlockBytes;
      const std::uint64_t size = block_size(data[i].size, block), part = std::min(left, size - within);
      if (part == size && (buffer.empty() || held != block)) {
        read_block(data[i], block, {target, part}, what);  // all of it is wanted
      } else {
        if (buffer.empty() || held != block) {
          buffer.resize(size);
          read_block(data[i], block, buffer, what);
          held = block;
        }
        std::memcpy(target, buffer.data() + within, part);
      }
      from += part;
      target += part;
      left -= part;
    }
  });
  check_bools(out, entries[i].name);
}

void TensorFile::State::fill(const comm::WantedSlice& wanted) const {
  if (wanted.slice.numel() == 0) return;
  const std::size_t i = index.at(wanted.name);
  const bool is_direct = wanted.target.is_cpu() && wanted.target.scalar_type() == entries[i].dtype;
  const at::Tensor read = is_direct ? wanted.target.detach()
                                    : at::empty({wanted.slice.numel()}, at::TensorOptions().dtype(entries[i].dtype));
  read_slice(i, wanted.slice, read);
  if (!is_direct) wanted.target.detach().copy_(read);
}

void TensorFile::State::check_wanted(const std::vector<comm::WantedSlice>& wanted) const {
  static constexpr std::size_t kMaxNamed = 3;
  std::vector<std::string> missing, misshapen;
  for (const comm::WantedSlice& one : wanted) {
    if (!one.target.is_contiguous() || one.target.numel() != one.slice.numel())
      throw InternalError("tensor {}: got a target that is not the {} elements of its slice", one.name,
                          one.slice.numel());
    const auto found = index.find(one.name);
    if (found == index.end()) {
      missing.push_back(one.name);
    } else if (entries[found->second].shape != one.shape) {
      misshapen.push_back(fmt::format("{} of shape [{}], want [{}]", one.name,
                                      fmt::join(entries[found->second].shape, ", "), fmt::join(one.shape, ", ")));
    }
  }
  const auto named = [](const std::vector<std::string>& names) {
    std::string text;
    for (std::size_t i = 0; i < std::min(names.size(), kMaxNamed); ++i) text += (i > 0 ? "; " : "") + names[i];
    if (names.size() > kMaxNamed) text += fmt::format("; and {} more", names.size() - kMaxNamed);
    return text;
  };
  if (missing.empty() && misshapen.empty()) return;
  std::string got;
  if (!missing.empty()) got = fmt::format("no tensor {}", named(missing));
  if (!misshapen.empty()) got += fmt::format("{}tensor {}", got.empty() ? "" : ", and ", named(misshapen));
  throw CheckpointError("{}: got {}; hint: the checkpoint is of another model", path.string(), got);
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
  return as_checkpoint_error([&] { return state_->read(found->second); });
}

NamedTensors TensorFile::read_all() const {
  NamedTensors result;
  for (const Entry& entry : state_->entries) result.emplace_back(entry.name, read(entry.name));
  return result;
}

void TensorFile::read_slices(const std::vector<comm::WantedSlice>& wanted) const {
  as_checkpoint_error([&] {
    state_->check_wanted(wanted);
    for (const comm::WantedSlice& one : wanted) state_->fill(one);
  });
}

void TensorFile::check(const std::vector<comm::WantedSlice>& wanted) const { state_->check_wanted(wanted); }

void TensorFile::verify(std::uint64_t part, std::uint64_t num_parts) const {
  as_checkpoint_error([&] {
    std::vector<std::byte> buffer;
    std::uint64_t number = 0;
    for (std::size_t i = 0; i < state_->data.size(); ++i) {
      const formats::ZipEntry& entry = state_->data[i];
      for (std::uint64_t block = 0; block < num_blocks(entry.size); ++block) {
        if (number++ % num_parts != part) continue;
        buffer.resize(block_size(entry.size, block));
        state_->read_block(entry, block, buffer, "tensor " + state_->entries[i].name);
      }
    }
  });
}

std::uint32_t TensorFile::content_id() const { return state_->content_id; }

}  // namespace dfm::checkpoint
