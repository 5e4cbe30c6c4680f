#pragma once
// The two containers of torch.save behind one call.
#include <memory>
#include <span>
#include <string>
#include <unordered_map>

#include "dfm/formats/pickle.h"

namespace dfm::formats {

// Where the data of storages are, by the address of their StorageImpl.
using StoragePlaces = std::unordered_map<const void*, std::span<const std::byte>>;

struct TorchSource {
  std::span<const std::byte> bytes;
  std::string name;  // for messages
  UnknownGlobals unknown = UnknownGlobals::kRefuse;
  std::shared_ptr<const void> owner;  // keeps `bytes` alive for the tensors; none: they get copies
  int nesting = 0;                    // torch files inside pickles inside torch files
  StoragePlaces* places = nullptr;    // storages get no data, their places are noted here: nothing of them is read
  bool allow_script = false;          // TorchScript archives, as the object that their data.pkl holds
};

PickleValue read_torch(const TorchSource& source);
bool is_torch_zip(std::span<const std::byte> bytes);
// What a TorchScript archive holds as constants: a tuple.
PickleValue read_script_constants(const TorchSource& source);
PickleValue read_legacy(const TorchSource& source);
bool is_legacy(std::span<const std::byte> bytes);

// Storage of a piece of source.bytes: a view when there is an owner and the piece is aligned, else a copy.
at::DataPtr storage_data(const TorchSource& source, std::span<const std::byte> piece);
// A C++ bool that is neither 0 nor 1 is undefined behaviour: refused.
void check_bools(std::span<const std::byte> bytes, const std::string& name);

}  // namespace dfm::formats
