#pragma once
// safetensors, both ways. Reading goes through formats/weights.h, too.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dfm::formats {

class SafetensorsFile {
 public:
  // Reads and checks the header: offsets contiguous, in range, matching shape and dtype; names once. Damage is a
  // DataError that names file and tensor. The file stays mapped.
  explicit SafetensorsFile(const std::filesystem::path& path);
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    at::ScalarType dtype;
    std::uint64_t offset = 0, size = 0;  // in the file
  };
  [[nodiscard]] const std::vector<Entry>& entries() const;  // in file order
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const;
  // A read-only view of the file where alignment allows.
  [[nodiscard]] at::Tensor read(const Entry& entry) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

// One file, written beside and renamed; metadata {"format":"pt"} as PyTorch's writers. Tensors on any device.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors);

}  // namespace dfm::formats
