// SafetensorsFile, write_safetensors, and Weights over every container.
#include "dfm/formats/safetensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "dfm/formats/torch_file.h"
#include "dfm/formats/weights.h"
#include "formats/media_files.h"

namespace dfm::formats {
namespace {

using test::error_of;
using test::flipped;
using test::MediaFolder;
using test::write_bytes;
using Named = std::vector<std::pair<std::string, at::Tensor>>;

std::string file_of(std::string header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

// The message of reading a file with this header and these data.
std::string refused(const std::string& header, const std::string& data = "") {
  const MediaFolder folder;
  write_bytes(folder / "bad.safetensors", file_of(header, data));
  const std::string message = error_of(ExitCode::kData, [&] { SafetensorsFile(folder / "bad.safetensors"); });
  EXPECT_NE(message.find("bad.safetensors"), std::string::npos) << message;
  return message;
}

Named some_tensors() {
  return {{"b.weight", at::arange(6, at::kFloat).reshape({2, 3})},
          {"a.bias", at::full({3}, 1.5, at::kBFloat16)},
          {"steps", at::arange(4)},
          {"mask", at::tensor({1, 0, 1}).to(at::kBool)},
          {"eighth", at::arange(3, at::kFloat).to(at::kFloat8_e4m3fn)},
          {"scalar", at::scalar_tensor(2.5, at::kDouble)},
          {"none", at::empty({0, 4}, at::kHalf)},
          {"turned", at::arange(6, at::kFloat).reshape({2, 3}).t()}};
}

TEST(Safetensors, RoundTripOfManyTypes) {
  const MediaFolder folder;
  const Named tensors = some_tensors();
  write_safetensors(folder / "a.safetensors", tensors);
  EXPECT_FALSE(std::filesystem::exists(folder / "a.safetensors.tmp"));
  const SafetensorsFile file(folder / "a.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.entries().size(), tensors.size());
  const Weights weights = Weights::open(folder / "a.safetensors");
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor back = weights.read(name);
    EXPECT_EQ(back.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(back.to(at::kDouble), tensor.to(at::kDouble))) << name;
    EXPECT_TRUE(back.is_contiguous());
    EXPECT_EQ(weights.find(name)->shape, tensor.sizes().vec());
  }
  EXPECT_EQ(weights.find("other"), nullptr);
  EXPECT_NE(error_of(ExitCode::kData, [&] { (void)weights.read("other"); }).find("other"), std::string::npos);
}

TEST(Safetensors, TensorsOutliveTheFileObject) {
  const MediaFolder folder;
  write_safetensors(folder / "a.safetensors", some_tensors());
  at::Tensor tensor;
  {
    const SafetensorsFile file(folder / "a.safetensors");
    for (const auto& entry : file.entries()) {
      if (entry.name == "b.weight") tensor = file.read(entry);
    }
  }
  std::filesystem::remove(folder / "a.safetensors");
  EXPECT_EQ(tensor.sum().item<float>(), 15);
}

TEST(Safetensors, HeadersOfAnyAlignmentAreRead) {
  const MediaFolder folder;
  const std::string data("\0\0\x80\x3f\0\0\0\x40", 8);
  for (int pad = 0; pad < 4; ++pad) {
    const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})" + std::string(pad, ' ');
    write_bytes(folder / "a.safetensors", file_of(header, data));
    const SafetensorsFile file(folder / "a.safetensors");
    EXPECT_TRUE(at::equal(file.read(file.entries()[0]), at::arange(1, 3, at::kFloat)));
  }
}

TEST(Safetensors, HostileHeadersAreDataErrors) {
  const std::string f32 = R"("dtype":"F32",)";
  EXPECT_NE(refused(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "12345678").find("tensor x"),
            std::string::npos);
  refused("{", "");
  refused("not JSON");
  refused("[1]");
  refused(R"({"x":1})");
  refused(R"({"x":{}})");
  refused(R"({"x":{"dtype":3,"shape":[],"data_offsets":[0,4]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[-1],"data_offsets":[0,4]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[1.0],"data_offsets":[0,4]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[1],"data_offsets":[4,0]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[1],"data_offsets":[0,4,8]}})", "1234");
  // 2^62 x 4 and 2^64 + 1 elements, and a product that comes round to 4 bytes.
  refused("{\"x\":{" + f32 + R"("shape":[4611686018427387904],"data_offsets":[0,4]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[18446744073709551617],"data_offsets":[0,4]}})", "1234");
  refused("{\"x\":{" + f32 + R"("shape":[4294967296,4294967296],"data_offsets":[0,0]}})");
  refused("{\"x\":{" + f32 + R"("shape":[1],"data_offsets":[9223372036854775803,9223372036854775807]}})", "1234");
  const auto two = [](const char* first, const char* second) {
    return fmt::format(R"({{"x":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                       R"("y":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                       first, second);
  };
  EXPECT_NE(refused(two("[0,4]", "[2,6]"), "123456").find("overlap"), std::string::npos);
  EXPECT_NE(refused(two("[0,4]", "[5,9]"), "123456789").find("holes"), std::string::npos);
  refused(two("[0,4]", "[0,4]"), "1234");
  EXPECT_NE(refused(two("[0,4]", "[4,8]"), "1234567").find("cut short"), std::string::npos);
  EXPECT_NE(refused(two("[0,4]", "[4,8]"), "123456789").find("after the last"), std::string::npos);
  EXPECT_NE(refused(R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                    R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})")
                .find("twice"),
            std::string::npos);
  EXPECT_NE(refused(R"({"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", "1").find("F4"), std::string::npos);
  refused(R"({"__metadata__":{"format":3}})");
  refused(std::string(100000, '['));
  refused("{\"x\":" + std::string(1000, '['));
}

TEST(Safetensors, HugeHeaderAndCutFilesAreDataErrors) {
  const MediaFolder folder;
  for (const std::uint64_t length : {std::uint64_t{100'000'001}, ~std::uint64_t{0}, std::uint64_t{1000}}) {
    write_bytes(folder / "x", std::string(reinterpret_cast<const char*>(&length), 8) + "{}");
    error_of(ExitCode::kData, [&] { SafetensorsFile(folder / "x"); });
  }
  write_safetensors(folder / "whole", some_tensors());
  const std::string whole = read_text_file(folder / "whole");
  for (std::size_t size = 0; size < whole.size(); size += 7) {
    write_bytes(folder / "x", whole.substr(0, size));
    error_of(ExitCode::kData, [&] { SafetensorsFile(folder / "x"); });
    error_of(ExitCode::kData, [&] { Weights::open(folder / "x"); });
  }
}

TEST(Safetensors, BoolsThatAreNoneAreRefusedWhenRead) {
  const MediaFolder folder;
  write_bytes(folder / "x", file_of(R"({"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\1\2"));
  const SafetensorsFile file(folder / "x");
  error_of(ExitCode::kData, [&] { (void)file.read(file.entries()[0]); });
}

TEST(SafetensorsWriter, RefusesWhatItCannotHold) {
  const MediaFolder folder;
  const at::Tensor one = at::ones({1});
  error_of(ExitCode::kInternal, [&] { write_safetensors(folder / "x", {{"a", one}, {"a", one}}); });
  error_of(ExitCode::kInternal, [&] { write_safetensors(folder / "x", {{"a", one.to(at::kComplexDouble)}}); });
  error_of(ExitCode::kData, [&] { write_safetensors(folder / "none" / "x", {{"a", one}}); });
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Weights, ShardsLieBesideTheirIndex) {
  const MediaFolder folder;
  write_safetensors(folder / "model-00001-of-00002.safetensors", {{"a", at::ones({2})}});
  write_safetensors(folder / "model-00002-of-00002.safetensors", {{"b", at::zeros({3})}, {"c", at::zeros({1})}});
  const auto index = [&](const std::string& map) {
    write_bytes(folder / "model.safetensors.index.json", R"({"metadata":{"total_size":1},"weight_map":)" + map + "}");
    return Weights::open_folder(folder.path(), "model");
  };
  const Weights weights = index(R"({"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"})");
  EXPECT_EQ(weights.entries().size(), 2U);
  EXPECT_EQ(index_files(folder / "model.safetensors.index.json").size(), 2U);
  EXPECT_TRUE(at::equal(weights.read("b"), at::zeros({3})));
  const auto message = [&](const std::string& map) { return error_of(ExitCode::kData, [&] { index(map); }); };
  EXPECT_NE(message(R"({"d":"model-00002-of-00002.safetensors"})").find("no tensor d"), std::string::npos);
  EXPECT_NE(message(R"({"a":"model-00003-of-00003.safetensors"})").find("00003"), std::string::npos);
  message(R"({"a":"../model-00001-of-00002.safetensors"})");
  message(R"({"a":"/etc/passwd"})");
  message(R"({"a":".."})");
  message(R"({"a":7})");
  message("[]");
  // An index that names itself must not be followed for ever.
  message(R"({"a":"model.safetensors.index.json"})");
}

TEST(Weights, FilesAreToldApartByContent) {
  const MediaFolder folder;
  write_bytes(folder / "a.safetensors", torch_save_tensor(at::ones({2})));
  error_of(ExitCode::kData, [&] { Weights::open(folder / "none"); });
  error_of(ExitCode::kData, [&] { Weights::open(folder.path()); });
  for (const char* text : {"", "hello", "{\"a\": 1}", "PK\x03\x04 and no more"}) {
    write_bytes(folder / "x", text);
    error_of(ExitCode::kData, [&] { Weights::open(folder / "x"); });
  }
  write_bytes(folder / "x", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
  EXPECT_NE(error_of(ExitCode::kData, [&] { Weights::open(folder / "x"); }).find("git lfs pull"), std::string::npos);
  EXPECT_NE(error_of(ExitCode::kData, [&] { Weights::open_folder(folder.path(), "model"); }).find("pytorch_model.bin"),
            std::string::npos);
}

}  // namespace
}  // namespace dfm::formats
