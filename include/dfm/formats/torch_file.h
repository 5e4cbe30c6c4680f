#pragma once
// Files of torch.save (zip and legacy) and pickled tensors, both ways, without Python. Layouts: docs/formats.md.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dfm/formats/pickle.h"

namespace dfm::formats {

// Reads a zip of torch.save or a legacy file. The file is memory-mapped: tensors are views of it, share storage as they
// did when saved, and keep it mapped as long as one lives. That memory is READ-ONLY: clone before writing in place.
// Hostile input is a DataError that names the file; nothing in it is ever executed.
PickleValue load_torch_file(const std::filesystem::path& path, UnknownGlobals unknown = UnknownGlobals::kRefuse);
// The same of bytes in memory; `name` is for messages. Tensors own their memory; the zip's crc32 values are verified.
PickleValue load_torch_bytes(std::span<const std::byte> bytes, const std::string& name,
                             UnknownGlobals unknown = UnknownGlobals::kRefuse);

// The `.pth` part: torch.save(tensor) as bytes, a minimal zip with top folder `archive` and a storage of just this
// tensor. The `.pickle` part: pickle.dumps(tensor). Tensors on any device, stored contiguous.
std::string torch_save_tensor(const at::Tensor& tensor);
std::string pickle_tensor(const at::Tensor& tensor);
// And back: a `.pth` is a torch file (zip or legacy), a `.pickle` is a pickle; each must hold one tensor. The result is
// contiguous and owns its memory.
at::Tensor load_pth_tensor(std::span<const std::byte> bytes, const std::string& name);
at::Tensor load_pickle_tensor(std::span<const std::byte> bytes, const std::string& name);

// All tensors of a (nested) dict with dotted names: what a state dict holds. Non-tensors are left out.
std::vector<std::pair<std::string, at::Tensor>> named_tensors(const PickleValue& value);

// For readers with a zip of their own (zip and pickle primitives: torch_zip.h, pickle_writer.h): reads the bytes of
// `data.pkl` and asks for each storage it names. `numel` counts elements of `dtype`. A storage without data yet is
// fine.
struct StorageRequest {
  std::string key;
  at::ScalarType dtype = at::kByte;
  std::int64_t numel = 0;
};
using LoadStorage = std::function<at::Storage(const StorageRequest& request)>;
PickleValue load_data_pickle(std::span<const std::byte> pickle, const std::string& name,
                             const LoadStorage& load_storage);

}  // namespace dfm::formats
