#pragma once
// A restricted pickle reader (protocols 2 to 5): builds a tree of values, never calls anything. Globals that torch
// files need are understood; any other global is refused by name (Unknown::kRefuse) or kept as an opaque node
// (Unknown::kKeep).
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace dfm::formats {

struct PickleValue;
using PickleList = std::vector<PickleValue>;
using PickleDict = std::vector<std::pair<PickleValue, PickleValue>>;  // in file order

struct PickleGlobal {
  std::string module, name;
};
struct PickleTuple {
  PickleList items;
};
struct PickleBytes {
  std::string bytes;
};
struct PickleObject;  // opaque: global, args, state

struct PickleValue {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, PickleBytes, std::shared_ptr<PickleTuple>,
               std::shared_ptr<PickleList>, std::shared_ptr<PickleDict>, PickleGlobal, at::Tensor,
               std::shared_ptr<PickleObject>>
      value;
  [[nodiscard]] bool is_none() const { return value.index() == 0; }
  [[nodiscard]] const at::Tensor* tensor() const { return std::get_if<at::Tensor>(&value); }
  // The value under a string key of a dict, or nullptr.
  [[nodiscard]] const PickleValue* find(std::string_view key) const;
};
struct PickleObject {
  PickleGlobal global;
  PickleValue args, state;
};

}  // namespace dfm::formats
