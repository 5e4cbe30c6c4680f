#include "dfm/checkpoint/tensor_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <set>

#include "dfm/base/file.h"
#include "dfm/formats/pickle_writer.h"
#include "dfm/formats/torch_file.h"
#include "dfm/formats/torch_zip.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::checkpoint {
namespace {

constexpr std::int64_t kBlock = 4 << 20;

NamedTensors sample_tensors() {
  return {{"decoder.weight", at::arange(24, at::kFloat).reshape({2, 3, 4}) / 7},
          {"decoder.bias", at::arange(5, at::kFloat).to(at::kBFloat16)},
          {"double", at::full({3}, 1.0 / 3, at::kDouble)},
          {"step", at::scalar_tensor(at::Scalar(41), at::kLong)},
          {"mask", at::arange(7, at::kLong).remainder(2).to(at::kBool)},
          {"empty", at::empty({0, 4}, at::kFloat)},
          {"transposed", at::arange(12, at::kInt).reshape({3, 4}).t()},
          {"eight", at::arange(3, at::kFloat).to(at::kFloat8_e4m3fn)}};
}

const Scalars kScalars = {{"iteration", std::int64_t{1} << 40},
                          {"negative", std::int64_t{-3}},
                          {"rate", 0.1},
                          {"flag", true},
                          {"dataset", std::string("butterflies \xc3\xa9")}};

void expect_same(const NamedTensors& got, const NamedTensors& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].first, want[i].first);
    ASSERT_EQ(got[i].second.scalar_type(), want[i].second.scalar_type()) << want[i].first;
    ASSERT_EQ(got[i].second.sizes(), want[i].second.sizes()) << want[i].first;
    const at::Tensor plain = want[i].second.contiguous();
    const std::string_view a(static_cast<const char*>(got[i].second.const_data_ptr()), plain.nbytes());
    const std::string_view b(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
    EXPECT_TRUE(a == b) << want[i].first;
  }
}

TEST(TensorFile, RoundTripKeepsTensorsAndScalars) {
  const test::TempFolder temp;
  write_tensor_file(temp / "x.pt", sample_tensors(), kScalars);
  const TensorFile file(temp / "x.pt");
  EXPECT_EQ(file.scalars(), kScalars);
  expect_same(file.read_all(), sample_tensors());
}

TEST(TensorFile, BlocksBeyondTheFirstAreKeptAndVerified) {
  const test::TempFolder temp;
  const NamedTensors tensors = {{"large", at::arange(2 * kBlock / 4 + 100, at::kFloat)}, {"small", at::ones({3})}};
  write_tensor_file(temp / "x.pt", tensors);
  expect_same(TensorFile(temp / "x.pt").read_all(), tensors);
  std::string content = read_text_file(temp / "x.pt");
  const std::uint64_t place = static_cast<std::uint64_t>(kBlock) + kBlock / 2;
  content[place] = static_cast<char>(content[place] ^ 1);
  write_file_atomically(temp / "y.pt", content);
  const TensorFile damaged(temp / "y.pt");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "y.pt: tensor large (entry archive/data/0)", damaged.read("large"));
  EXPECT_TRUE(damaged.read("small").equal(at::ones({3})));
}

TEST(TensorFile, OffsetsDependOnNamesAndShapesAlone) {
  const test::TempFolder temp;
  NamedTensors others = sample_tensors();
  for (auto& [name, tensor] : others) tensor = at::zeros_like(tensor);
  write_tensor_file(temp / "a.pt", sample_tensors());
  write_tensor_file(temp / "b.pt", others);
  const auto places = [&](const std::string& name) {
    const std::string content = read_text_file(temp / name);
    std::vector<std::uint64_t> offsets;
    for (const auto& entry :
         formats::read_zip_directory(formats::read_from(as_bytes(content), name), content.size(), name)) {
      EXPECT_EQ(entry.data_offset % 64, 0U);
      offsets.push_back(entry.data_offset);
    }
    return offsets;
  };
  EXPECT_EQ(places("a.pt"), places("b.pt"));
}

TEST(TensorFile, UnknownNameGivesTheNearest) {
  const test::TempFolder temp;
  write_tensor_file(temp / "x.pt", sample_tensors());
  const TensorFile file(temp / "x.pt");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "there is decoder.weight", file.read("decoder.weigth"));
}

TEST(TensorFile, MissingFileAndOtherContentAreCheckpointErrors) {
  const test::TempFolder temp;
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "cannot open", TensorFile(temp / "none.pt"));
  write_file_atomically(temp / "text.pt", "hello");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "text.pt", TensorFile(temp / "text.pt"));
  write_file_atomically(temp / "empty.pt", "");
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "empty.pt", TensorFile(temp / "empty.pt"));
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "", write_tensor_file(temp / "no" / "folder.pt", sample_tensors()));
}

TEST(TensorFile, FilesOfOtherSoftwareAreRead) {
  const test::TempFolder temp;
  const at::Tensor tensor = at::arange(6, at::kFloat).reshape({2, 3});
  write_file_atomically(temp / "x.pt", formats::torch_save_tensor(tensor));
  const TensorFile file(temp / "x.pt");
  ASSERT_EQ(file.entries().size(), 1U);
  at::Tensor read = file.read("");
  read.add_(1);  // owns its memory
  EXPECT_TRUE(read.equal(tensor + 1));
}

// Every single flipped bit is either named or changes nothing that is read.
TEST(TensorFile, AnyFlippedBitIsFoundOrChangesNothing) {
  const test::TempFolder temp;
  const NamedTensors tensors = {{"a.weight", at::arange(6, at::kFloat)}, {"b", at::ones({2}, at::kBFloat16)}};
  const Scalars scalars = {{"iteration", std::int64_t{7}}};
  write_tensor_file(temp / "x.pt", tensors, scalars);
  const std::string content = read_text_file(temp / "x.pt");
  int num_found = 0;
  for (std::size_t place = 0; place < content.size(); ++place) {
    const auto bit = static_cast<char>(1U << (place % 8));
    std::string damaged = content;
    damaged[place] = static_cast<char>(damaged[place] ^ bit);
    File(temp / "y.pt", File::Mode::kCreate).write(as_bytes(damaged));
    try {
      const TensorFile file(temp / "y.pt");
      const NamedTensors read = file.read_all();
      SCOPED_TRACE(place);
      EXPECT_EQ(file.scalars(), scalars);
      expect_same(read, tensors);
    } catch (const Error& error) {
      ++num_found;
      EXPECT_EQ(error.code(), ExitCode::kCheckpoint) << error.what();
      EXPECT_NE(std::string(error.what()).find("y.pt"), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(num_found, 500);  // all of pickle, data, checksums and most of the headers
}

// A target for a slice of a whole tensor, and what must be in it afterwards.
struct SliceCase {
  comm::WantedSlice wanted;
  at::Tensor expected;
};

SliceCase slice_case(const std::string& name, const at::Tensor& whole, const comm::Slice& slice, at::ScalarType dtype) {
  const std::vector<std::int64_t> shape = whole.sizes().vec();
  at::Tensor part = slice.dim < 0 ? whole : whole.narrow(slice.dim, slice.begin, slice.end - slice.begin);
  part = part.contiguous().view(-1).narrow(0, slice.first, slice.numel()).to(dtype);
  return {{name, shape, slice, at::full({slice.numel()}, -1, at::TensorOptions().dtype(dtype))}, part};
}

TEST(TensorFile, SlicesAreFilledInAnyTypeFromOursAndOthers) {
  const test::TempFolder temp;
  // Rows of 1,000,003 floats: blocks of checksums begin and end within rows.
  const at::Tensor large = at::arange(3 * 1000003, at::kFloat).view({3, 1000003});
  const at::Tensor small = at::arange(24, at::kFloat).view({2, 3, 4});
  write_tensor_file(temp / "ours.pt", {{"large", large}, {"small", small}});
  write_file_atomically(temp / "theirs.pt", formats::torch_save_tensor(large));
  std::vector<SliceCase> cases;
  const std::vector<std::int64_t> shape = large.sizes().vec();
  const comm::Slice columns{.dim = 1, .begin = 7, .end = 1000001, .first = 0, .last = 3 * 999994};
  for (const comm::Slice& slice :
       {comm::whole_slice(shape), comm::block_slice(shape, 0, 1, 3), comm::block_slice(shape, 0, 2, 3), columns,
        comm::sub_slice(columns, 999990, 2000000), comm::sub_slice(comm::whole_slice(shape), 1048575, 1048578),
        comm::sub_slice(columns, 5, 5)}) {
    cases.push_back(slice_case("large", large, slice, at::kFloat));
    cases.push_back(slice_case("large", large, slice, at::kDouble));
  }
  const auto check = [&](const TensorFile& file) {
    std::vector<comm::WantedSlice> wanted;
    for (SliceCase& one : cases) {
      one.wanted.target.fill_(-1);
      wanted.push_back(one.wanted);
    }
    file.read_slices(wanted);
    for (std::size_t i = 0; i < cases.size(); ++i)
      EXPECT_TRUE(cases[i].wanted.target.equal(cases[i].expected)) << "case " << i;
  };
  for (SliceCase& one : cases) one.wanted.name = "";
  check(TensorFile(temp / "theirs.pt"));
  for (SliceCase& one : cases) one.wanted.name = "large";
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (int i = 0; i < 2; ++i)
      cases.push_back(slice_case("small", small, comm::block_slice({2, 3, 4}, 2, i, 2), dtype));
  }
  check(TensorFile(temp / "ours.pt"));
}

TEST(TensorFile, SlicesReadOnlyTheBlocksThatHoldThem) {
  const test::TempFolder temp;
  const at::Tensor tensor = at::arange(3 * kBlock / 4, at::kFloat);
  write_tensor_file(temp / "x.pt", {{"a", tensor}});
  std::string content = read_text_file(temp / "x.pt");
  content[static_cast<std::size_t>(kBlock) + kBlock / 2] ^= 1;  // in the second block
  write_file_atomically(temp / "x.pt", content);
  const TensorFile file(temp / "x.pt");
  const auto want = [&](std::int64_t first, std::int64_t last) {
    return slice_case("a", tensor, comm::sub_slice(comm::whole_slice({3 * kBlock / 4}), first, last), at::kFloat);
  };
  const std::int64_t block = kBlock / 4;
  for (const SliceCase& one : {want(0, block), want(2 * block, 3 * block), want(2 * block + 5, 2 * block + 6)}) {
    file.read_slices({one.wanted});
    EXPECT_TRUE(one.wanted.target.equal(one.expected));
  }
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "x.pt: tensor a", (file.read_slices({want(0, block + 1).wanted}), 0));
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "x.pt: tensor a", (file.verify(), 0));
  file.verify(0, 3);
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "x.pt: tensor a", (file.verify(1, 3), 0));
  file.verify(2, 3);
}

TEST(TensorFile, WantedNamesAndShapesThatAreNotThereAreOneError) {
  const test::TempFolder temp;
  write_tensor_file(temp / "x.pt", {{"a", at::ones({2, 3})}, {"b", at::ones({4})}});
  const TensorFile file(temp / "x.pt");
  const SliceCase fits = slice_case("a", at::ones({2, 3}), comm::whole_slice({2, 3}), at::kFloat);
  const SliceCase misshapen = slice_case("b", at::ones({2, 2}), comm::whole_slice({2, 2}), at::kFloat);
  const SliceCase missing = slice_case("c", at::ones({1}), comm::whole_slice({1}), at::kFloat);
  const std::vector<comm::WantedSlice> wanted = {fits.wanted, misshapen.wanted, missing.wanted};
  EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "no tensor c, and tensor b of shape [4], want [2, 2]",
                   (file.read_slices(wanted), 0));
  EXPECT_TRUE(fits.wanted.target.equal(at::full({6}, -1, at::kFloat)));  // nothing was touched
}

TEST(TensorFile, ContentIdTellsContentsApart) {
  const test::TempFolder temp;
  const std::uint32_t a = write_tensor_file(temp / "a.pt", {{"x", at::zeros({3})}});
  const std::uint32_t same = write_tensor_file(temp / "same.pt", {{"x", at::zeros({3})}});
  const std::uint32_t value = write_tensor_file(temp / "value.pt", {{"x", at::ones({3})}});
  const std::uint32_t name = write_tensor_file(temp / "name.pt", {{"y", at::zeros({3})}});
  const std::uint32_t scalar = write_tensor_file(temp / "scalar.pt", {{"x", at::zeros({3})}}, kScalars);
  EXPECT_EQ(a, same);
  EXPECT_EQ((std::set{a, value, name, scalar}).size(), 4U);
  EXPECT_EQ(TensorFile(temp / "a.pt").content_id(), a);
  EXPECT_EQ(TensorFile(temp / "value.pt").content_id(), value);
  write_file_atomically(temp / "theirs.pt", formats::torch_save_tensor(at::zeros({3})));
  EXPECT_EQ(TensorFile(temp / "theirs.pt").content_id(), 0U);
}

TEST(TensorFile, PiecesThatLeaveGapsOrOverlapAreRefused) {
  const test::TempFolder temp;
  const comm::Slice whole = comm::whole_slice({6});
  for (const auto& [first, last] : {std::pair{2, 6}, {4, 6}, {3, 5}}) {
    comm::ShardedTensor tensor{.name = "a", .shape = {6}};
    tensor.pieces = {{0, comm::sub_slice(whole, 0, 3)}, {0, comm::sub_slice(whole, first, last)}};
    tensor.local = {at::zeros({3}), at::zeros({last - first})};
    EXPECT_DFM_ERROR(ExitCode::kInternal, "a",
                     write_sharded_tensor_file(temp / "x.pt", {tensor}, *comm::World::solo()));
  }
}

TEST(TensorFile, FullDiskIsSeenAtOnceAndIsAResourceError) {
  // A limit on file sizes stands for a disk without space.
  const test::TempFolder temp;
  const NamedTensors tensors = {{"large", at::zeros({1 << 20})}};
  const auto former = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = test::error_of([&] { write_tensor_file(temp / "x.pt", tensors); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, former);
  EXPECT_TRUE(error.starts_with("6 ")) << error;
  EXPECT_NE(error.find("x.pt: cannot make room for"), std::string::npos) << error;
  EXPECT_EQ(std::filesystem::file_size(temp / "x.pt"), 0U);  // found before anything was written
}

TEST(TensorFile, EveryTruncationIsAnError) {
  const test::TempFolder temp;
  write_tensor_file(temp / "x.pt", {{"a", at::arange(6, at::kFloat)}});
  const std::string content = read_text_file(temp / "x.pt");
  for (std::size_t size = 0; size < content.size(); size += 3) {
    File(temp / "y.pt", File::Mode::kCreate).write(as_bytes(content).first(size));
    EXPECT_DFM_ERROR(ExitCode::kCheckpoint, "y.pt", TensorFile(temp / "y.pt"));
  }
}

}  // namespace
}  // namespace dfm::checkpoint
