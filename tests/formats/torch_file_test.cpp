#include "dfm/formats/torch_file.h"

#include <gtest/gtest.h>

#include <random>

#include "dfm/base/file.h"
#include "dfm/formats/pickle_writer.h"
#include "dfm/formats/torch_zip.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::formats {
namespace {

using std::string_literals::operator""s;
using Entries = std::vector<std::pair<std::string, std::string>>;

std::string make_zip(const Entries& contents) {
  std::vector<std::pair<std::string, std::uint64_t>> sizes;
  for (const auto& [name, content] : contents) sizes.emplace_back(name, content.size());
  ZipPlan plan = plan_zip(sizes);
  std::string out;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    plan.entries[i].crc32 = zip_crc32(as_bytes(contents[i].second));
    out += zip_header(plan.entries[i]) + contents[i].second;
  }
  return out + zip_directory(plan);
}

// A tensor with the given window on a storage of 4 floats.
std::string window_pickle(std::int64_t offset, const std::vector<std::int64_t>& size,
                          const std::vector<std::int64_t>& stride, const std::string& type = "FloatStorage") {
  PickleWriter out;
  out.start();
  out.global("torch._utils", "_rebuild_tensor_v2");
  out.mark();
  out.mark();
  out.text("storage");
  out.global("torch", type);
  out.text("0");
  out.text("cpu");
  out.integer(4);
  out.tuple();
  std::string text = out.take() + "Q";
  PickleWriter rest;
  rest.integer(offset);
  rest.integer_tuple(size);
  rest.integer_tuple(stride);
  rest.boolean(false);
  rest.none();
  rest.tuple();
  rest.reduce();
  rest.stop();
  return text + rest.take();
}

PickleValue load_window(std::int64_t offset, const std::vector<std::int64_t>& size,
                        const std::vector<std::int64_t>& stride) {
  const at::Tensor data = at::arange(4, at::kFloat);
  const std::string raw(static_cast<const char*>(data.const_data_ptr()), data.nbytes());
  const std::string zip =
      make_zip({{"x/data.pkl", window_pickle(offset, size, stride)}, {"x/data/0", raw}, {"x/version", "3\n"}});
  return load_torch_bytes(as_bytes(zip), "w");
}

class EveryDtype : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(EveryDtype, SurvivesPthAndPickle) {
  const at::Tensor tensor = at::arange(12, at::kFloat).remainder(2).reshape({3, 4}).to(GetParam());
  for (const at::Tensor& each : {tensor, tensor.t(), tensor.select(0, 1), tensor.select(0, 1).select(0, 2)}) {
    const at::Tensor from_pth = load_pth_tensor(as_bytes(torch_save_tensor(each)), "a.pth");
    EXPECT_EQ(from_pth.scalar_type(), GetParam());
    EXPECT_EQ(from_pth.sizes(), each.sizes());
    EXPECT_TRUE(from_pth.to(at::kFloat).equal(each.to(at::kFloat)));
    if (GetParam() == at::kFloat8_e5m2) continue;
    const at::Tensor from_pickle = load_pickle_tensor(as_bytes(pickle_tensor(each)), "a.pickle");
    EXPECT_EQ(from_pickle.scalar_type(), GetParam());
    EXPECT_TRUE(from_pickle.to(at::kFloat).equal(each.to(at::kFloat)));
  }
}
INSTANTIATE_TEST_SUITE_P(TorchFile, EveryDtype,
                         ::testing::Values(at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                                           at::kShort, at::kChar, at::kByte, at::kBool, at::kFloat8_e5m2),
                         [](const auto& test) { return std::string(at::toString(test.param)); });

TEST(TorchFile, PthStoresNoMoreThanTheTensor) {
  const at::Tensor large = at::zeros({1000, 64});
  EXPECT_LT(torch_save_tensor(large.select(0, 3)).size(), 1500U);
  EXPECT_LT(pickle_tensor(large.select(0, 3)).size(), 900U);
}

TEST(TorchFile, EmptyTensorsKeepTheirShape) {
  const at::Tensor empty = at::empty({2, 0, 3}, at::kBFloat16);
  EXPECT_EQ(load_pth_tensor(as_bytes(torch_save_tensor(empty)), "e").sizes(), empty.sizes());
  EXPECT_EQ(load_pickle_tensor(as_bytes(pickle_tensor(empty)), "e").sizes(), empty.sizes());
}

TEST(TorchFile, MappedTensorsOutliveTheCall) {
  const test::TempFolder temp;
  const at::Tensor tensor = at::arange(100000, at::kFloat);
  write_file_atomically(temp / "x.pth", torch_save_tensor(tensor));
  at::Tensor view;
  {
    const PickleValue value = load_torch_file(temp / "x.pth");
    view = value.tensor()->slice(0, 5000);
  }
  std::filesystem::remove(temp / "x.pth");
  EXPECT_TRUE(view.equal(tensor.slice(0, 5000)));
}

TEST(TorchFile, WindowsInsideTheStorageAreViews) {
  EXPECT_TRUE(load_window(1, {3}, {1}).tensor()->equal(at::tensor({1.0F, 2.0F, 3.0F})));
  EXPECT_TRUE(load_window(0, {2, 2}, {1, 2}).tensor()->equal(at::tensor({0.0F, 2.0F, 1.0F, 3.0F}).reshape({2, 2})));
  EXPECT_EQ(load_window(3, {5}, {0}).tensor()->sum().item<float>(), 15.0F);
  EXPECT_EQ(load_window(0, {}, {}).tensor()->item<float>(), 0.0F);
}

TEST(TorchFile, WindowsBeyondTheStorageAreRefused) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(0, {5}, {1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(1, {4}, {1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(4, {}, {}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(-1, {1}, {1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(0, {2}, {kHuge}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(0, {3}, {kHuge}));
  EXPECT_DFM_ERROR(ExitCode::kData, "beyond its storage", load_window(0, {kHuge, kHuge}, {0, 0}));
  EXPECT_DFM_ERROR(ExitCode::kData, "no size", load_window(0, {-1}, {1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "no size", load_window(3, {2}, {-1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "2 sizes and 1 strides", load_window(0, {1, 1}, {1}));
  EXPECT_DFM_ERROR(ExitCode::kData, "in a storage of 16", load_window(0, {kHuge >> 8}, {0}));
}

TEST(TorchFile, ZipMustBeAFileOfTorchSave) {
  const std::string pickle = window_pickle(0, {4}, {1});
  const std::string raw(16, '\0');
  const auto load = [](const Entries& entries) { return load_torch_bytes(as_bytes(make_zip(entries)), "z"); };
  EXPECT_DFM_ERROR(ExitCode::kData, "data.pkl", load({{"x/version", "3\n"}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "data.pkl", load({{"data.pkl", pickle}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "x/data/0: got none", load({{"x/data.pkl", pickle}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "got 15 bytes", load({{"x/data.pkl", pickle}, {"x/data/0", raw.substr(1)}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "big-endian",
                   load({{"x/data.pkl", pickle}, {"x/byteorder", "big"}, {"x/data/0", raw}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "TorchScript", load({{"x/data.pkl", pickle}, {"x/constants.pkl", "x"}}));
  EXPECT_DFM_ERROR(ExitCode::kData, "got it twice",
                   load({{"x/data.pkl", pickle}, {"x/data/0", raw}, {"x/data/0", raw}}));
  std::string two(16, '\0');
  two[5] = 2;
  EXPECT_DFM_ERROR(ExitCode::kData, "bool",
                   load({{"x/data.pkl", window_pickle(0, {4}, {1}, "BoolStorage")}, {"x/data/0", two.substr(4, 4)}}));
}

TEST(TorchFile, CompressedEntriesAreRefusedByName) {
  std::string zip = torch_save_tensor(at::ones({4}));
  const std::string central = "PK\x01\x02"s;
  const std::size_t third = zip.find(central, zip.find(central, zip.find(central) + 1) + 1);
  zip[third + 10] = 8;
  EXPECT_DFM_ERROR(ExitCode::kData, "archive/data/0: got compression method 8", load_torch_bytes(as_bytes(zip), "z"));
}

TEST(TorchFile, DamagedDataAreFoundByTheZipsChecksum) {
  std::string zip = torch_save_tensor(at::ones({64}));
  const std::size_t place = zip.find("\x80\x3f\x00\x00\x80\x3f"s);
  ASSERT_NE(place, std::string::npos);
  zip[place + 1] ^= 1;
  EXPECT_DFM_ERROR(ExitCode::kData, "entry archive/data/0: got crc32", load_pth_tensor(as_bytes(zip), "z"));
}

TEST(TorchFile, ForbiddenGlobalInAZipIsNamed) {
  const std::string zip = make_zip({{"x/data.pkl",
                                     "\x80\x02"
                                     "cposix\nsystem\n(X\x02\x00\x00\x00idtR."s}});
  EXPECT_DFM_ERROR(ExitCode::kData, "posix.system", load_pth_tensor(as_bytes(zip), "z"));
}

TEST(TorchFile, NotATensorIsRefused) {
  EXPECT_DFM_ERROR(ExitCode::kData, "no tensor", load_pickle_tensor(as_bytes("\x80\x02K\x01."s), "p"));
  EXPECT_DFM_ERROR(ExitCode::kData, "something else", load_pth_tensor(as_bytes("hello"), "p"));
  EXPECT_DFM_ERROR(ExitCode::kData, "empty", load_pth_tensor({}, "p"));
}

TEST(TorchFile, NamedTensorsWalkNestedDicts) {
  const std::string body = window_pickle(0, {4}, {1});
  const std::string tensor = body.substr(2, body.size() - 3);
  PickleWriter head;
  head.start();
  head.empty_dict();
  head.mark();
  head.text("module");
  head.empty_dict();
  head.mark();
  head.text("a.weight");
  std::string pickle = head.take() + tensor + "uX\x01\x00\x00\x00nK\x05K\x02"s + tensor + "u.";
  const std::string zip = make_zip({{"x/data.pkl", pickle}, {"x/data/0", std::string(16, '\0')}});
  const auto tensors = named_tensors(load_torch_bytes(as_bytes(zip), "z"));
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_EQ(tensors[0].first, "module.a.weight");
  EXPECT_EQ(tensors[1].first, "2");
  EXPECT_TRUE(tensors[0].second.is_alias_of(tensors[1].second));
}

TEST(TorchZip, DirectoryOfALargeFileUsesZip64) {
  constexpr std::uint64_t kLarge = std::uint64_t{5} << 30;
  ZipPlan plan = plan_zip({{"x/data.pkl", 10}, {"x/data/0", kLarge}, {"x/data/1", 7}});
  for (ZipEntry& entry : plan.entries) entry.crc32 = 0x1234;
  const std::string directory = zip_directory(plan);
  std::map<std::uint64_t, std::string> pieces = {{plan.directory_offset, directory}};
  for (const ZipEntry& entry : plan.entries) pieces[entry.header_offset] = zip_header(entry);
  const ReadAt sparse = [&](std::uint64_t offset, std::span<std::byte> out) {  // zeros but for the pieces
    std::fill(out.begin(), out.end(), std::byte{0});
    for (const auto& [start, content] : pieces) {
      for (std::size_t i = 0; i < content.size(); ++i) {
        if (start + i >= offset && start + i - offset < out.size()) out[start + i - offset] = std::byte(content[i]);
      }
    }
  };
  const auto entries = read_zip_directory(sparse, plan.directory_offset + directory.size(), "big");
  ASSERT_EQ(entries.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(entries[i].data_offset, plan.entries[i].data_offset);
    EXPECT_EQ(entries[i].size, plan.entries[i].size);
    EXPECT_EQ(entries[i].data_offset % kZipAlignment, 0U);
  }
}

// Cut and damaged files end in a DataError or read as what they still say: never in a crash.
class Damage : public ::testing::TestWithParam<bool> {};

TEST_P(Damage, NeverCrashes) {
  const at::Tensor tensor = at::arange(40, at::kFloat).reshape({5, 8}).to(at::kBFloat16);
  const std::string good = GetParam() ? torch_save_tensor(tensor) : pickle_tensor(tensor);
  const auto load = GetParam() ? load_pth_tensor : load_pickle_tensor;
  const auto try_load = [&](const std::string& bytes) {
    try {
      static_cast<void>(load(as_bytes(bytes), "d").to(at::kFloat).sum().item<float>());
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData) << error.what();
      return false;
    }
  };
  for (std::size_t size = 0; size < good.size(); size += 1 + good.size() / 400) {
    EXPECT_FALSE(try_load(good.substr(0, size))) << size;
  }
  std::mt19937 random(7);
  int num_refused = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string bytes = good;
    for (unsigned flip = 0; flip < 1 + random() % 3; ++flip)
      bytes[random() % bytes.size()] = static_cast<char>(random());
    num_refused += try_load(bytes) ? 0 : 1;
  }
  EXPECT_GT(num_refused, 100);
}
INSTANTIATE_TEST_SUITE_P(TorchFile, Damage, ::testing::Bool(),
                         [](const auto& test) { return std::string(test.param ? "Zip" : "PickleWithLegacyBlob"); });

}  // namespace
}  // namespace dfm::formats
