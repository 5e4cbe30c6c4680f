#pragma once
// What every rank computes alike before a tensor file is written or read: where each entry lies, and which rank sees to
// it.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/torch_zip.h"

namespace dfm::checkpoint {

struct FilePlan {
  std::vector<std::string> leading;                  // contents of data.pkl, byteorder, version: the first entries
  formats::ZipPlan zip;                              // these, the tensors in order, integrity
  std::vector<std::vector<std::size_t>> tensors_of;  // by rank: the tensors it writes, large ones first
  std::uint64_t fingerprint = 0;                     // of all that the ranks must agree on
  [[nodiscard]] std::size_t entry_of(std::size_t tensor) const { return leading.size() + tensor; }
  [[nodiscard]] std::uint64_t file_size() const;
};

// The largest first, each to the rank with the least so far: every rank's list then shrinks alike.
std::vector<std::vector<std::size_t>> deal_out(const std::vector<std::uint64_t>& sizes, int num_ranks);
std::uint64_t bytes_of_tensor(const std::vector<std::int64_t>& shape, at::ScalarType dtype);

FilePlan plan_file(const std::vector<comm::ShardedTensor>& tensors, const Scalars& scalars, int num_ranks);

}  // namespace dfm::checkpoint
