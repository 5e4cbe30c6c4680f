#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <regex>

#include "dfm/base/error.h"
#include "models/cosmos_tokenizer/layers.h"

namespace dfm::models::cosmos {
namespace {

// What published files carry without using it: constants of the patcher, and samplers of levels that do not sample.
bool is_known_unused(const std::string& name) {
  static const std::regex kKnown(R"(.*(patcher3d\..*|\.wavelets|\._arange|\.patch_size_buffer))"
                                 R"(|.*\.(downsample|upsample|downsamplers\.0|upsamplers\.0)\.conv[123]\..*)");
  return std::regex_match(name, kKnown);
}

}  // namespace

WeightReader::WeightReader(NamedTensors tensors, std::int64_t num_levels, at::Device device, at::ScalarType dtype)
    : tensors_(std::move(tensors)),
      native_(has_native_names(tensors_)),
      num_levels_(num_levels),
      device_(device),
      dtype_(dtype) {}

at::Tensor WeightReader::read(const std::string& name, const std::vector<std::int64_t>& shape) {
  const std::string own_name = native_ ? native_name(name, num_levels_) : name;
  requests_.emplace_back(name, shape);
  used_.push_back(own_name);
  const auto found = tensors_.find(own_name);
  if (found == tensors_.end()) {
    faults_.push_back(fmt::format("{}: missing, want shape {}", own_name, fmt::join(shape, "x")));
    return at::zeros(shape, at::kFloat);
  }
  if (found->second.sizes() != c10::IntArrayRef(shape)) {
    faults_.push_back(fmt::format("{}: got shape {}, want {}", own_name, fmt::join(found->second.sizes(), "x"),
                                  fmt::join(shape, "x")));
    return at::zeros(shape, at::kFloat);
  }
  return found->second.to(at::kFloat);
}

void WeightReader::finish(const std::string& where) const {
  std::vector<std::string> faults = faults_, used = used_;
  std::sort(used.begin(), used.end());
  for (const auto& [name, tensor] : tensors_) {
    if (!std::binary_search(used.begin(), used.end(), name) && !is_known_unused(name)) {
      faults.push_back(fmt::format("{}: no such tensor in this network", name));
    }
  }
  if (faults.empty()) return;
  const std::string others = faults.size() == 1 ? "" : fmt::format(" and {} more such faults", faults.size() - 1);
  throw DataError("tensor {}{} ({}); hint: the weights do not fit the tokenizer's configuration", faults.front(),
                  others, where);
}

}  // namespace dfm::models::cosmos
