#pragma once
// Published weights, whatever they are stored in, as named tensors that are read one by one: safetensors (one file, or
// several with an index), zip and legacy files of torch.save, TorchScript archives. Files are memory-mapped: opening a
// 45 GB file reads its index only, and a tensor costs memory when it is copied.
//
//   const Weights weights = Weights::open("t5-small/model.safetensors");
//   at::Tensor shared = weights.read("shared.weight").to(at::kBFloat16);
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dfm::formats {

class Weights {
 public:
  // A .safetensors file, an index (*.safetensors.index.json, *.bin.index.json: the files it names lie beside it), a
  // torch.save file (zip or legacy), or a TorchScript archive (parameters and buffers, by their place in the module
  // tree). Told apart by content, not by name. Damage is a DataError that names the file.
  static Weights open(const std::filesystem::path& path);
  // The weights of a folder in transformers' or diffusers' layout: the first that is there of STEM.safetensors,
  // STEM.safetensors.index.json, then, for stem `model`, pytorch_model.bin and its index. DataError: none.
  static Weights open_folder(const std::filesystem::path& folder, const std::string& stem);

  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    at::ScalarType dtype;
  };
  [[nodiscard]] const std::vector<Entry>& entries() const;  // in file order
  [[nodiscard]] const Entry* find(std::string_view name) const;
  // On the CPU, a view of the mapped file where alignment allows: READ-ONLY memory, clone before writing. Keeps the
  // file mapped. An unknown name is a DataError.
  [[nodiscard]] at::Tensor read(std::string_view name) const;
  [[nodiscard]] const std::filesystem::path& path() const;  // what was opened, for messages

 private:
  struct State;
  explicit Weights(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

// The files that an index (*.index.json) names, sorted. DataError: no index, or names of files elsewhere.
std::vector<std::string> index_files(const std::filesystem::path& index);

}  // namespace dfm::formats
