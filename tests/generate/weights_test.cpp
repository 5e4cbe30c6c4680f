#include "generate/weights.h"

#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "generate/tiny_model.h"

namespace dfm::generate {
namespace {

namespace fs = std::filesystem;
using Entries = std::vector<checkpoint::TensorFile::Entry>;

Entries entries_of(const checkpoint::NamedTensors& tensors, const std::string& prefix) {
  Entries entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({prefix + name, tensor.sizes().vec(), tensor.scalar_type()});
  }
  return entries;
}

void expect_tiny(const models::DitConfig& config) {
  const models::DitConfig want = test::tiny_config();
  EXPECT_EQ(config.num_layers, want.num_layers);
  EXPECT_EQ(config.hidden_size, want.hidden_size);
  EXPECT_EQ(config.num_attention_heads, want.num_attention_heads);
  EXPECT_EQ(config.crossattn_emb_size, want.crossattn_emb_size);
  EXPECT_EQ(config.in_channels, want.in_channels);
}

TEST(InferConfig, ReadsTheShapeOffNumberedLayers) {
  expect_tiny(infer_config(entries_of(test::tiny_weights(), ""), "x"));
  expect_tiny(infer_config(entries_of(test::tiny_weights(), "module."), "x"));
}

TEST(InferConfig, ReadsTheShapeOffStackedLayers) {
  Entries stacked;
  const std::string first = "decoder.layers.0.";
  for (const auto& entry : entries_of(test::tiny_weights(), "")) {
    if (entry.name.starts_with(first)) {
      std::vector<std::int64_t> shape = entry.shape;
      shape.insert(shape.begin(), 2);
      stacked.push_back({"module.decoder.layers." + entry.name.substr(first.size()), shape, entry.dtype});
    } else if (!entry.name.starts_with("decoder.")) {
      stacked.push_back({"module." + entry.name, entry.shape, entry.dtype});
    }
  }
  expect_tiny(infer_config(stacked, "x"));
}

TEST(InferConfig, RefusesWhatIsNoDit) {
  const std::string message = test::error_of([] {
    infer_config({{"encoder.weight", {3, 4}, at::kFloat}}, "other.pt");
  });
  EXPECT_TRUE(message.starts_with("4 other.pt: got no tensor ")) << message;
  Entries odd = entries_of(test::tiny_weights(), "");
  for (auto& entry : odd) {
    if (entry.name == "x_embedder.weight") entry.shape = {50, 64};  // not a multiple of the head size
  }
  EXPECT_TRUE(test::error_of([&] { infer_config(odd, "other.pt"); }).starts_with("4 other.pt: got 2 layers"));
}

TEST(FindWeights, TakesFilesIterationsAndRunFolders) {
  const test::TempFolder folder;
  const fs::path run = folder.path() / "run";
  test::write_iteration(run, 5, test::tiny_weights(), {});
  test::write_iteration(run, 12, test::tiny_weights(), {});
  const fs::path newest = fs::canonical(run / "iter_0000012" / "model_weights.pt");
  EXPECT_EQ(find_weights(run), newest);
  EXPECT_EQ(find_weights(run / "iter_0000012"), newest);
  EXPECT_EQ(find_weights(run / "iter_0000012" / "model.pth"), newest);
  EXPECT_EQ(find_weights(run / "iter_5"), fs::canonical(run / "iter_0000005" / "model_weights.pt"));
  fs::create_symlink(newest, folder.path() / "model.pth");
  EXPECT_EQ(find_weights(folder.path() / "model.pth"), newest);
}

TEST(FindWeights, SaysWhatIsMissing) {
  const test::TempFolder folder;
  EXPECT_TRUE(test::error_of([] { find_weights("./no_model_here.pth"); }).starts_with("4 ./no_model_here.pth: "));
  EXPECT_TRUE(test::error_of([&] { find_weights(folder.path()); }).starts_with("4 "));
  fs::create_symlink("gone.pt", folder.path() / "model.pth");
  EXPECT_NE(test::error_of([&] { find_weights(folder.path() / "model.pth"); }).find("gone.pt"), std::string::npos);
}

TEST(StoredFacts, ComeFromTheFolderOfTheWeights) {
  const test::TempFolder folder;
  data::DatasetCard card;
  card.fps = 12.5;
  test::write_iteration(folder.path() / "a", 1, test::tiny_weights(), card);
  test::write_iteration(folder.path() / "b", 1, test::tiny_weights(), {});
  const auto found = stored_facts(find_weights(folder.path() / "a")).card;
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->fps, 12.5);
  EXPECT_EQ(found->tokenizer, "builtin");
  EXPECT_FALSE(stored_facts(find_weights(folder.path() / "b")).card.has_value());
}

}  // namespace
}  // namespace dfm::generate
