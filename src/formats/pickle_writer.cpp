#include "dfm/formats/pickle_writer.h"

#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/formats/torch_file.h"
#include "dfm/formats/torch_zip.h"
#include "formats/torch_types.h"

namespace dfm::formats {
namespace {

// The first three pickles of the legacy format: magic number, version 1001, a system of little-endian order.
constexpr std::string_view kLegacyHead(
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\x02\x4d\xe9\x03\x2e", 21);

std::string legacy_system() {
  PickleWriter out;
  out.start();
  out.empty_dict();
  out.mark();
  out.text("protocol_version");
  out.integer(1001);
  out.text("little_endian");
  out.boolean(true);
  out.text("type_sizes");
  out.empty_dict();
  out.mark();
  for (const auto& [type, size] : {std::pair{"short", 2}, {"int", 4}, {"long", 4}}) {
    out.text(type);
    out.integer(size);
  }
  out.set_items();
  out.set_items();
  out.stop();
  return out.take();
}

std::string_view raw_bytes(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

at::Tensor plain(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU).contiguous().resolve_conj().resolve_neg();
}

std::string_view typed_storage_class(at::ScalarType dtype) {
  const auto name = storage_class(dtype);
  if (!name) throw InternalError("pickle: got a tensor of type {}, want a type of old torch", dtype_name(dtype));
  return *name;
}

}  // namespace

template <typename T>
void PickleWriter::little_endian(T value) {
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof value);
  out_.append(bytes.data(), bytes.size());
}

void PickleWriter::start(int protocol) {
  op('\x80');
  little_endian(static_cast<std::uint8_t>(protocol));
}

void PickleWriter::integer(std::int64_t value) {
  if (value >= 0 && value < 256) {
    op('K');
    little_endian(static_cast<std::uint8_t>(value));
  } else if (value >= 0 && value < 65536) {
    op('M');
    little_endian(static_cast<std::uint16_t>(value));
  } else if (value >= std::numeric_limits<std::int32_t>::min() && value <= std::numeric_limits<std::int32_t>::max()) {
    op('J');
    little_endian(static_cast<std::int32_t>(value));
  } else {
    op('\x8a');
    little_endian(std::uint8_t{8});
    little_endian(value);
  }
}

void PickleWriter::real(double value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  op('G');
  little_endian(__builtin_bswap64(bits));
}

void PickleWriter::text(std::string_view value) {
  op('X');
  little_endian(static_cast<std::uint32_t>(value.size()));
  out_ += value;
}

void PickleWriter::bytes(std::string_view value) {
  const bool is_large = value.size() > std::numeric_limits<std::uint32_t>::max();  // protocol 4
  op(is_large ? '\x8e' : 'B');
  if (is_large) {
    little_endian(std::uint64_t{value.size()});
  } else {
    little_endian(static_cast<std::uint32_t>(value.size()));
  }
  out_ += value;
}

void PickleWriter::global(std::string_view module, std::string_view name) {
  op('c');
  out_ += module;
  op('\n');
  out_ += name;
  op('\n');
}

void PickleWriter::integer_tuple(std::span<const std::int64_t> values) {
  mark();
  for (const std::int64_t value : values) integer(value);
  tuple();
}

void PickleWriter::storage(at::ScalarType dtype, std::string_view key, std::int64_t numel) {
  const auto typed = storage_class(dtype);
  mark();
  text("storage");
  if (typed) {
    global("torch", *typed);
  } else {
    global("torch.storage", "UntypedStorage");
    numel *= static_cast<std::int64_t>(c10::elementSize(dtype));
  }
  text(key);
  text("cpu");
  integer(numel);
  tuple();
  op('Q');
}

void PickleWriter::begin_tensor(at::ScalarType dtype) {
  global("torch._utils", storage_class(dtype) ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
  mark();
}

void PickleWriter::end_tensor(at::ScalarType dtype, std::span<const std::int64_t> shape) {
  integer(0);  // storage offset
  integer_tuple(shape);
  integer_tuple(contiguous_strides(shape));
  boolean(false);  // requires_grad
  global("collections", "OrderedDict");
  empty_tuple();
  reduce();
  if (!storage_class(dtype)) global("torch", dtype_name(dtype));
  tuple();
  reduce();
}

void PickleWriter::tensor(at::ScalarType dtype, std::span<const std::int64_t> shape, std::string_view key) {
  std::int64_t numel = 1;
  for (const std::int64_t size : shape) numel *= size;
  begin_tensor(dtype);
  storage(dtype, key, numel);
  end_tensor(dtype, shape);
}

std::vector<std::int64_t> contiguous_strides(std::span<const std::int64_t> shape) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i > 0; --i) {
    strides[i - 1] = stride;
    stride *= std::max<std::int64_t>(shape[i - 1], 1);
  }
  return strides;
}

std::string torch_save_tensor(const at::Tensor& tensor) {
  const at::Tensor data = plain(tensor);
  PickleWriter pickle;
  pickle.start();
  pickle.tensor(data.scalar_type(), data.sizes(), "0");
  pickle.stop();
  const std::string object = pickle.take();
  const std::vector<std::pair<std::string, std::string_view>> contents = {{"archive/data.pkl", object},
                                                                          {"archive/byteorder", "little"},
                                                                          {"archive/data/0", raw_bytes(data)},
                                                                          {"archive/version", "3\n"}};
  std::vector<std::pair<std::string, std::uint64_t>> sizes;
  for (const auto& [name, content] : contents) sizes.emplace_back(name, content.size());
  ZipPlan plan = plan_zip(sizes);
  std::string out;
  out.reserve(plan.directory_offset + 1024);
  for (std::size_t i = 0; i < contents.size(); ++i) {
    plan.entries[i].crc32 = zip_crc32(as_bytes(contents[i].second));
    out += zip_header(plan.entries[i]);
    out += contents[i].second;
  }
  return out + zip_directory(plan);
}

std::string pickle_tensor(const at::Tensor& tensor) {
  const at::Tensor data = plain(tensor);
  const at::ScalarType dtype = data.scalar_type();

  PickleWriter object;
  object.start();
  object.mark();
  object.text("storage");
  object.global("torch", typed_storage_class(dtype));
  object.text("0");
  object.text("cpu");
  object.integer(data.numel());
  object.none();  // no window of another storage
  object.tuple();
  object.op('Q');
  object.stop();

  PickleWriter tail;  // the keys, then count and data
  tail.start();
  tail.op(']');
  tail.text("0");
  tail.op('a');
  tail.stop();
  tail.little_endian(std::int64_t{data.numel()});

  std::string blob(kLegacyHead);
  blob += legacy_system() + object.take() + tail.take();
  blob += raw_bytes(data);

  PickleWriter out;
  out.start(blob.size() > std::numeric_limits<std::uint32_t>::max() ? 4 : 3);
  out.begin_tensor(dtype);
  out.global("torch.storage", "_load_from_bytes");
  out.mark();
  out.bytes(blob);
  out.tuple();
  out.reduce();
  out.end_tensor(dtype, data.sizes());
  out.stop();
  return out.take();
}

}  // namespace dfm::formats
