// The formats and checkpoint layers for the Python scripts beside this file:
//   formats_tool write FOLDER      writes tensors, pickles, a tensor file and a data set (contents: peers.py)
//   formats_tool describe FILE...  what is in torch files (.pickle: a pickle), a line of JSON each, tensors as dtype,
//                                  shape, strides and sha256
#include <ATen/ATen.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/nv_meta.h"
#include "dfm/formats/pickle_writer.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"
#include "support/sha256.h"

namespace dfm {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

ordered_json describe(const formats::PickleValue& value) {
  if (value.is_none()) return nullptr;
  if (value.boolean() != nullptr) return *value.boolean();
  if (value.integer() != nullptr) return *value.integer();
  if (value.real() != nullptr) return *value.real();
  if (value.text() != nullptr) return *value.text();
  if (value.bytes() != nullptr) return {{"bytes", value.bytes()->size()}};
  if (const auto* dtype = std::get_if<at::ScalarType>(&value.value)) return {{"dtype", at::toString(*dtype)}};
  if (const at::Tensor* tensor = value.tensor()) {
    const at::Tensor plain = tensor->contiguous();
    const std::span bytes(static_cast<const std::byte*>(plain.const_data_ptr()), plain.nbytes());
    return {{"tensor", at::toString(tensor->scalar_type())},
            {"shape", tensor->sizes().vec()},
            {"stride", tensor->strides().vec()},
            {"sha256", test::sha256(bytes)}};
  }
  if (value.list() != nullptr || value.tuple() != nullptr) {
    ordered_json items = ordered_json::array();
    for (const auto& item : value.list() != nullptr ? *value.list() : *value.tuple()) items.push_back(describe(item));
    return {{value.list() != nullptr ? "list" : "tuple", items}};
  }
  if (value.dict() != nullptr) {
    ordered_json items = ordered_json::array();
    for (const auto& [key, item] : *value.dict()) items.push_back({describe(key), describe(item)});
    return {{"dict", items}};
  }
  return {{"other", value.value.index()}};
}

// Values that every type holds exactly: small halves for numbers, 0 and 1 for bools.
at::Tensor pattern(const std::vector<std::int64_t>& shape, at::ScalarType dtype, std::int64_t salt) {
  std::int64_t numel = 1;
  for (const std::int64_t size : shape) numel *= size;
  const at::Tensor integers = (at::arange(numel, at::kLong) * 37 + salt).remainder(101);
  if (dtype == at::kBool) return integers.remainder(2).to(at::kBool).reshape(shape);
  if (at::isFloatingType(dtype)) return ((integers - 50).to(at::kDouble) / 2).to(dtype).reshape(shape);
  return integers.to(dtype).reshape(shape);
}

void write_dataset(const fs::path& folder) {
  constexpr int kShards = 3, kSamplesPerShard = 4;
  fs::create_directories(folder);
  formats::NvMeta meta;
  meta.splits = {{"train", {}}, {"val", {}}, {"test", {}}};
  for (int shard = 0; shard < kShards; ++shard) {
    const std::string name = fmt::format("rank{}-000000.tar", shard);
    formats::TarWriter writer(folder / name);
    std::vector<std::uint64_t> offsets;
    for (int i = 0; i < kSamplesPerShard; ++i) {
      const int number = shard * kSamplesPerShard + i, width = 8 + 2 * (number % 3), text_length = 1 + 7 * number;
      const std::string key = fmt::format("{:06}", number);
      at::Tensor text = pattern({1, 512, 64}, at::kBFloat16, number + 1);
      text.slice(1, text_length).zero_();
      const nlohmann::json json = {
          {"image_height", 64}, {"image_width", 8 * width}, {"caption", "sample " + key}, {"text_length", text_length}};
      offsets.push_back(writer.offset());
      writer.add(key + ".json", as_bytes(json.dump()));
      writer.add(key + ".pickle", as_bytes(formats::pickle_tensor(text)));
      const at::Tensor latent = pattern({1, 16, 1 + number % 2, 8, width}, at::kBFloat16, number);
      writer.add(key + ".pth", as_bytes(formats::torch_save_tensor(latent)));
    }
    offsets.push_back(writer.offset());
    writer.close();
    formats::write_tar_index((folder / name).string() + ".idx", offsets);
    meta.shard_counts.emplace_back(name, kSamplesPerShard);
    meta.splits[shard + 1 < kShards ? "train" : "val"].push_back(name);
  }
  formats::write_nv_meta(folder, meta);
}

void write_all(const fs::path& folder) {
  const std::vector<std::pair<std::string, at::ScalarType>> types = {
      {"float32", at::kFloat}, {"float64", at::kDouble}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16},
      {"int64", at::kLong},    {"int32", at::kInt},      {"int16", at::kShort},  {"int8", at::kChar},
      {"uint8", at::kByte},    {"bool", at::kBool}};
  checkpoint::NamedTensors tensors;
  for (const auto& [name, dtype] : types) {
    const at::Tensor tensor = pattern({3, 4, 5}, dtype, 3);
    write_file_atomically(folder / (name + ".pth"), formats::torch_save_tensor(tensor));
    write_file_atomically(folder / (name + ".pickle"), formats::pickle_tensor(tensor));
    tensors.emplace_back("all." + name, tensor);
  }
  write_file_atomically(folder / "scalar.pth", formats::torch_save_tensor(pattern({}, at::kFloat, 3)));
  write_file_atomically(folder / "empty.pth", formats::torch_save_tensor(pattern({0, 4}, at::kFloat, 3)));
  write_file_atomically(folder / "scalar.pickle", formats::pickle_tensor(pattern({}, at::kFloat, 3)));
  write_file_atomically(folder / "empty.pickle", formats::pickle_tensor(pattern({0, 4}, at::kFloat, 3)));
  write_file_atomically(folder / "uint16.pth", formats::torch_save_tensor(pattern({3, 4, 5}, at::kUInt16, 3)));
  tensors.emplace_back("large", pattern({1500000}, at::kFloat, 5));  // several blocks of checksums
  tensors.emplace_back("scalar", pattern({}, at::kDouble, 3));
  tensors.emplace_back("empty", pattern({0, 4}, at::kFloat, 3));
  checkpoint::write_tensor_file(folder / "tensors.pt", tensors,
                                {{"iteration", std::int64_t{1} << 40},
                                 {"negative", std::int64_t{-5}},
                                 {"rate", 0.1},
                                 {"done", false},
                                 {"name", std::string("caf\xc3\xa9")}});
  write_dataset(folder / "dataset");
}

void describe_file(const fs::path& path) {
  const bool is_pickle = path.extension() == ".pickle";
  const formats::PickleValue value =
      is_pickle ? formats::load_pickle(as_bytes(read_text_file(path)), path.string()) : formats::load_torch_file(path);
  std::cout << describe(value).dump() << "\n";
}

}  // namespace
}  // namespace dfm

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) return 64;
  try {
    if (arguments[0] == "write") {
      std::filesystem::create_directories(arguments[1]);
      dfm::write_all(arguments[1]);
    } else {
      for (std::size_t i = 1; i < arguments.size(); ++i) dfm::describe_file(arguments[i]);
    }
    return 0;
  } catch (const dfm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
