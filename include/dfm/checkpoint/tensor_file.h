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

#include "dfm/comm/sharded_tensor.h"
#include "dfm/comm/world.h"

namespace dfm::checkpoint {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
// Small facts beside the tensors (extra_state.pt): dict values that Python reads as int, float, bool and str.
using Scalar = std::variant<std::int64_t, double, bool, std::string>;
using Scalars = std::map<std::string, Scalar>;

// Written by all ranks of `world` at once: each tensor is gathered to one rank, dealt out by bytes, which writes it.
// One tensor at a time, a rank. All ranks call it with the same names, shapes, pieces and scalars; on return the file
// is whole and synced on every rank's side (the caller renames the folder). Its bytes do not depend on the layout.
// Gives a number that tells this content from any other (crc32c of all checksums), the same on every rank.
std::uint32_t write_sharded_tensor_file(const std::filesystem::path& path,
                                        const std::vector<comm::ShardedTensor>& tensors, comm::World& world,
                                        const Scalars& scalars = {});
// The same by this process alone. Tensors on any device and with any strides.
std::uint32_t write_tensor_file(const std::filesystem::path& path, const NamedTensors& tensors,
                                const Scalars& scalars = {});

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
  // Fills the targets, a tensor at a time, reading and verifying only the 4 MiB blocks that hold the slices. Missing or
  // misshapen names are one CheckpointError, before any target is touched; names of the file that nobody wants are not
  // looked at.
  void read_slices(const std::vector<comm::WantedSlice>& wanted) const;
  // The same, called by all ranks of `world` with what each wants: tensors of which several ranks want the same blocks
  // are read once, by one rank, which sends the slices.
  void read_slices(const std::vector<comm::WantedSlice>& wanted, comm::World& world) const;
  // The CheckpointError of read_slices, without reading.
  void check(const std::vector<comm::WantedSlice>& wanted) const;
  // Reads and verifies every `num_parts`-th block of all data, from block `part` on: ranks share the work. Nothing to
  // do for files of others.
  void verify(std::uint64_t part = 0, std::uint64_t num_parts = 1) const;
  // What write_sharded_tensor_file gave; 0 for files of others.
  [[nodiscard]] std::uint32_t content_id() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dfm::checkpoint
