#pragma once
// One logical file of named tensors: the ordinary zip of torch.save (torch.load(weights_only=True, mmap=True) opens
// it), entries stored raw at 64-byte offsets computed from names and shapes alone, plus an entry `integrity` with
// crc32c of every 4 MiB block of each other entry. Knows tensors only as (name, shape, dtype, bytes).
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace dfm::checkpoint {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
// Small facts beside the tensors (extra_state.pt): dict values that Python reads as int, float, bool and str.
using Scalar = std::variant<std::int64_t, double, bool, std::string>;
using Scalars = std::map<std::string, Scalar>;

// Writes `path` whole (created, synced, closed; the caller renames the folder). Tensors on any device; stored
// contiguous.
void write_tensor_file(const std::filesystem::path& path, const NamedTensors& tensors, const Scalars& scalars = {});

class TensorFile {
 public:
  // Reads the index only. Damage is a CheckpointError that names file and entry. Files of torch.save by others are read
  // too (without integrity, said once).
  explicit TensorFile(const std::filesystem::path& path);
  ~TensorFile();
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    at::ScalarType dtype;
  };
  [[nodiscard]] const std::vector<Entry>& entries() const;
  [[nodiscard]] const Scalars& scalars() const;
  // Reads and verifies one tensor; owns its memory.
  [[nodiscard]] at::Tensor read(const std::string& name) const;
  [[nodiscard]] NamedTensors read_all() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::checkpoint
