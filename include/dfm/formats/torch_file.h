#pragma once
// Files of torch.save (zip and legacy) and pickled tensors, both ways, without Python. Layouts: docs/formats.md.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dfm/formats/pickle.h"

namespace dfm::formats {

// Reads a zip of torch.save (memory-mapped: tensors are views of the file, which stays mapped as long as one lives) or
// a legacy file. `name` is for messages. Hostile input is a DataError; nothing in it is ever executed.
PickleValue load_torch_file(const std::filesystem::path& path);
PickleValue load_torch_bytes(std::span<const std::byte> bytes, const std::string& name);

// The `.pth` part: torch.save(tensor) as bytes, minimal zip with top folder `archive`. The `.pickle` part:
// pickle.dumps(tensor).
std::string torch_save_tensor(const at::Tensor& tensor);
std::string pickle_tensor(const at::Tensor& tensor);
// And back, whichever of the forms the bytes have. Copies; the result owns its memory.
at::Tensor load_pth_tensor(std::span<const std::byte> bytes, const std::string& name);
at::Tensor load_pickle_tensor(std::span<const std::byte> bytes, const std::string& name);

// All tensors of a (nested) dict with dotted names: what a state dict holds. Non-tensors are left out.
std::vector<std::pair<std::string, at::Tensor>> named_tensors(const PickleValue& value);

// Pickle and zip primitives that the checkpoint writer builds on are in torch_zip.h.

}  // namespace dfm::formats
