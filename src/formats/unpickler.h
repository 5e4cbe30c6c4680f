#pragma once
// The stack machine behind load_pickle and the torch file readers.
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/formats/pickle.h"
#include "dfm/formats/torch_file.h"

namespace dfm::formats {

struct UnpicklerOptions {
  std::string name;  // for messages
  UnknownGlobals unknown = UnknownGlobals::kRefuse;
  LoadStorage load_storage;  // none: persistent ids are refused
  int nesting = 0;           // torch files inside pickles inside torch files
};

class Unpickler {
 public:
  // Reads the pickle at the start of `bytes`; position() is then just behind it.
  Unpickler(std::span<const std::byte> bytes, UnpicklerOptions options) : bytes_(bytes), options_(std::move(options)) {}
  ~Unpickler();
  Unpickler(const Unpickler&) = delete;
  Unpickler& operator=(const Unpickler&) = delete;
  PickleValue load();
  [[nodiscard]] std::size_t position() const { return position_; }

 private:
  using Container = std::variant<std::shared_ptr<PickleTuple>, std::shared_ptr<PickleList>, std::shared_ptr<PickleDict>,
                                 std::shared_ptr<PickleObject>>;

  // Input.
  std::span<const std::byte> take(std::uint64_t count);
  template <typename T>
  T number();
  std::string_view line();
  std::string text(std::uint64_t count);

  // Stack and memo.
  void push(PickleValue value) { stack_.push_back(std::move(value)); }
  PickleValue pop();
  PickleList pop_to_mark();
  PickleValue& top();
  void put(std::uint64_t index);
  void get(std::uint64_t index);

  // One opcode; false at STOP.
  bool step();
  bool step_scalar(unsigned char code);
  bool step_container(unsigned char code);
  bool step_memo(unsigned char code);
  bool step_object(unsigned char code);
  void append(PickleList items);
  void set_items(PickleList items);
  void integer_of_bytes(std::span<const std::byte> bytes);

  // Globals and calls: pickle_globals.cpp.
  void push_global(const std::string& module, const std::string& name);
  PickleValue call(const PickleValue& function, PickleValue args);
  PickleValue call_torch(const std::string& name, const PickleList& args);
  PickleValue call_numpy(const PickleGlobal& function, PickleValue args);
  PickleValue call_builtin(const std::string& name, const PickleList& args);
  void build(PickleValue& target, PickleValue state);
  void build_numpy(PickleObject& target, const PickleValue& state);
  PickleValue persistent(const PickleValue& id);
  PickleValue load_blob(const std::string& blob);
  at::Tensor view_of(const PickleStorage& storage, at::ScalarType dtype, std::int64_t offset,
                     const std::vector<std::int64_t>& size, const std::vector<std::int64_t>& stride);
  at::Tensor numpy_tensor(std::string_view data, at::ScalarType dtype, const std::vector<std::int64_t>& shape,
                          bool fortran);
  PickleValue numpy_scalar(std::string_view data, at::ScalarType dtype);
  std::optional<at::ScalarType> as_dtype(const PickleValue& value) const;
  std::vector<std::int64_t> as_sizes(const PickleValue& value, const char* what);
  const PickleValue& argument(const PickleList& args, std::size_t index, const std::string& function);

  // Containers are made here, so that they can be checked and taken apart without recursion.
  PickleValue new_tuple(PickleList items);
  PickleValue new_list(PickleList items);
  PickleValue new_dict();
  PickleValue new_object(PickleGlobal global, PickleValue args);
  void finish(PickleValue& result);
  void check_keys(const PickleDict& dict) const;

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError("{}: {} (pickle, byte {})", options_.name, fmt::format(format, std::forward<Args>(args)...),
                    opcode_position_);
  }

  std::span<const std::byte> bytes_;
  UnpicklerOptions options_;
  std::size_t position_ = 0, opcode_position_ = 0, copied_bytes_ = 0;
  std::vector<PickleValue> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, PickleValue> memo_;
  std::vector<Container> containers_;
  bool keep_containers_ = false;
};

}  // namespace dfm::formats
