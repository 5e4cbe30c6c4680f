#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/formats/torch_file.h"
#include "models/dit/embeddings.h"
#include "support/files.h"
#include "support/tolerance.h"

namespace dfm::models {
namespace {

TEST(DitEmbeddingsGolden, PositionsAndSinusoidsAreThoseOfDfm) {
  const auto folder = test::golden_dir();
  if (!folder) GTEST_SKIP() << "no DFM_GOLDEN_DIR and no shared/golden";
  const formats::PickleValue file = formats::load_torch_file(*folder / "dfm" / "embeddings.pt");
  std::map<std::string, at::Tensor> tensors;
  for (auto& [name, tensor] : formats::named_tensors(file)) tensors.emplace(name, tensor);
  int compared = 0;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with("pos") && name.ends_with(".rows")) {
      const std::string base = name.substr(0, name.size() - 5);
      PositionCodes codes(tensor.size(1), at::kFloat, at::kCPU);
      EXPECT_LT(test::relative_error(codes.lookup(tensors.at(base + ".ids")), tensor), 1e-7) << name;
      PositionCodes rounded(tensor.size(1), at::kBFloat16, at::kCPU);
      EXPECT_EQ(test::relative_error(rounded.lookup(tensors.at(base + ".ids")), tensors.at(base + ".rows_bf16")), 0)
          << name;
      ++compared;
    } else if (name.starts_with("time") && name.ends_with(".sinusoid")) {
      const at::Tensor& times = tensors.at(name.substr(0, name.find('.')) + ".timesteps");
      EXPECT_LT(test::relative_error(sinusoid(times, tensor.size(1), 0), tensor), 1e-6) << name;
      ++compared;
    } else if (name == "fps.sinusoid") {
      EXPECT_LT(test::relative_error(sinusoid(tensors.at("fps.fps"), tensor.size(1), 1), tensor), 3e-6);
      ++compared;
    }
  }
  EXPECT_GE(compared, 3);
}

TEST(DitEmbeddingsGolden, PositionTableIsTheOneInDfmsWeightFile) {
  const auto folder = test::golden_dir();
  if (!folder) GTEST_SKIP() << "no DFM_GOLDEN_DIR and no shared/golden";
  const formats::PickleValue file = formats::load_torch_file(*folder / "dfm" / "model.pt");
  const at::Tensor* table = file.find("pos_embedder.pos_embedding.weight")->tensor();
  ASSERT_NE(table, nullptr);
  // The file does not say its three sides; the first rows with t = 0 repeat the column's code once for each row.
  const at::Tensor single_positions =
      *formats::load_torch_file(*folder / "dfm" / "pack_own_sigma.pt").find("pos_ids")->tensor();
  const std::int64_t width = table->size(1);
  PositionCodes codes(width, at::kFloat, at::kCPU);
  const at::Tensor time_width = table->narrow(1, 0, width / 4);
  std::int64_t plane = 1;
  while (plane < table->size(0) && at::equal(time_width[plane], time_width[0])) ++plane;
  const auto side = static_cast<std::int64_t>(std::llround(std::sqrt(static_cast<double>(plane))));
  ASSERT_EQ(side * side, plane);
  EXPECT_LT(test::relative_error(position_table(table->size(0) / plane, side, side, width), *table), 1e-7);
  const at::Tensor row = single_positions.matmul(at::tensor({plane, side, std::int64_t{1}}));
  EXPECT_LT(test::relative_error(codes.lookup(single_positions), table->index_select(0, row)), 1e-7);
}

}  // namespace
}  // namespace dfm::models
