#include "dfm/checkpoint/tensor_file.h"

#include <gtest/gtest.h>

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
