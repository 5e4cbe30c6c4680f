#pragma once
// A restricted pickle reader (protocols 2 to 5): builds a tree of values, never calls anything. The globals that torch
// and numpy files need are understood; any other global is refused by name (UnknownGlobals::kRefuse) or kept as an
// opaque node (UnknownGlobals::kKeep).
//
//   const PickleValue state = load_pickle(bytes, "common.pt");
//   if (const PickleValue* step = state.find("iteration")) use(step->integer());
//
// Mapping: OrderedDict -> dict, torch.Size -> tuple, set and frozenset -> list, numpy array -> tensor, numpy scalar ->
// number, torch.dtype and numpy.dtype -> at::ScalarType, torch.device and torch.layout -> text, complex -> tuple of two
// numbers, an integer of more than 64 bits -> PickleLong. A value holds no cycles and is at most 100 containers deep.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dfm::formats {

struct PickleValue;
struct PickleObject;
struct PickleStorage;
using PickleList = std::vector<PickleValue>;
using PickleDict = std::vector<std::pair<PickleValue, PickleValue>>;  // in file order, text keys are unique

struct PickleGlobal {
  std::string module, name;
};
struct PickleTuple {
  PickleList items;
};
struct PickleBytes {
  std::shared_ptr<const std::string> bytes;
};
struct PickleLong {
  std::string bytes;  // two's complement, little endian
};

struct PickleValue {
  std::variant<std::monostate, bool, std::int64_t, double, std::string, PickleBytes, PickleLong,
               std::shared_ptr<PickleTuple>, std::shared_ptr<PickleList>, std::shared_ptr<PickleDict>, PickleGlobal,
               at::ScalarType, at::Tensor, std::shared_ptr<PickleStorage>, std::shared_ptr<PickleObject>>
      value;

  [[nodiscard]] bool is_none() const { return value.index() == 0; }
  // The content, or nullptr when the value is of another type.
  [[nodiscard]] const bool* boolean() const { return std::get_if<bool>(&value); }
  [[nodiscard]] const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value); }
  [[nodiscard]] const double* real() const { return std::get_if<double>(&value); }
  [[nodiscard]] const std::string* text() const { return std::get_if<std::string>(&value); }
  [[nodiscard]] const std::string* bytes() const;
  [[nodiscard]] const at::Tensor* tensor() const { return std::get_if<at::Tensor>(&value); }
  [[nodiscard]] const PickleList* list() const;  // of a list
  [[nodiscard]] const PickleList* tuple() const;
  [[nodiscard]] const PickleDict* dict() const;
  [[nodiscard]] const PickleObject* object() const;
  // The value under a text key of a dict, or nullptr.
  [[nodiscard]] const PickleValue* find(std::string_view key) const;
};

// A typed window of a storage: what a persistent id of a torch file names.
struct PickleStorage {
  at::Storage storage;
  at::ScalarType dtype = at::kByte;
  std::int64_t offset = 0;  // in elements of dtype
  std::int64_t numel = 0;
};

// An object of a class that is not understood; `resolved` is used while reading only.
struct PickleObject {
  PickleGlobal global;
  PickleValue args, state, resolved;
};

enum class UnknownGlobals { kRefuse, kKeep };

// Reads one pickle, which must fill `bytes`. `name` is for messages. Damage, hostile content and big-endian data are a
// DataError. Tensors own their memory.
PickleValue load_pickle(std::span<const std::byte> bytes, const std::string& name,
                        UnknownGlobals unknown = UnknownGlobals::kRefuse);

}  // namespace dfm::formats
