#pragma once
// Files of tensors: published weights, torch files with other content, TorchScript; and folders of an encoder.
#include <filesystem>
#include <string>
#include <vector>

#include "inspect/facts.h"

namespace dfm::inspect {

struct NamedShape {
  std::string name;
  std::vector<std::int64_t> shape;
  at::ScalarType dtype;
};
// `tensors`, `parameters`, `dtypes` and the list itself into `facts`.
void add_tensors(Facts& facts, const std::vector<NamedShape>& tensors);
// For people: tensors that differ in numbers of their names alone are one row, the numbers `*`.
void fold_tensors(Facts& facts);

Facts inspect_file(const std::filesystem::path& path);
// A folder in transformers' or diffusers' layout, or with TorchScript files.
bool is_encoder_folder(const std::filesystem::path& folder);
Facts inspect_encoder_folder(const std::filesystem::path& folder);

}  // namespace dfm::inspect
