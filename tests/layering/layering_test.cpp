// Includes against the layer table of cmake/DfmLayers.cmake, in this tree; and proof, on small trees made here, that
// each kind of violation is found.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "layering/layer_rules.h"

namespace {

namespace fs = std::filesystem;
using dfm::layering::Layer;
using dfm::layering::rank_names;
using dfm::layering::read_table;
using dfm::layering::violations;

const fs::path kRoot = DFM_SOURCE_DIR;

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const auto& line : lines) text += line + "\n";
  return text;
}

class SmallTree : public testing::Test {
 protected:
  SmallTree() { fs::remove_all(root_); }
  ~SmallTree() override { fs::remove_all(root_); }

  void add(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  [[nodiscard]] std::vector<std::string> found() const { return violations(root_, table_); }
  void expect_one(const std::string& want) const {
    const auto lines = found();
    ASSERT_EQ(lines.size(), 1U) << joined(lines);
    EXPECT_EQ(lines[0], want);
  }

  const std::string name_ = testing::UnitTest::GetInstance()->current_test_info()->name();
  const fs::path root_ = fs::path(testing::TempDir()) / ("dfm_layering_" + name_);
  const std::vector<Layer> table_{{"base", {}, {"fmt"}}, {"low", {}, {"zlib.h", "ATen"}}, {"high", {"low"}, {"fmt"}}};
};

TEST(LayerTable, IsReadWholeAndOnlyPointsDown) {
  const auto table = read_table(kRoot / "cmake/DfmLayers.cmake");
  ASSERT_GE(table.size(), 14U);
  EXPECT_EQ(table.front().name, "base");
  std::vector<std::string> lower;
  for (const auto& layer : table) {
    for (const auto& used : layer.uses)
      EXPECT_NE(std::find(lower.begin(), lower.end(), used), lower.end()) << layer.name << " uses " << used;
    EXPECT_TRUE(fs::exists(kRoot / "src" / layer.name)) << layer.name;
    lower.push_back(layer.name);
  }
}

TEST(LayerTable, HoldsForEveryInclude) {
  const auto table = read_table(kRoot / "cmake/DfmLayers.cmake");
  EXPECT_EQ(joined(violations(kRoot, table)), "");
}

TEST(LayerTable, ModelsAndDiffusionNameNoRank) { EXPECT_EQ(joined(rank_names(kRoot, {"models", "diffusion"})), ""); }

TEST_F(SmallTree, AllowsWhatTheTableAllows) {
  add("src/low/own.h", "");
  add("src/low/a.cpp",
      "#include <zlib.h>\n#include <vector>\n#include <sys/mman.h>\n#include \"own.h\"\n#include \"low/own.h\"\n");
  add("src/high/b.cpp",
      "#include \"dfm/low/a.h\"\n#include \"dfm/base/error.h\"\n#include \"dfm/config/schema.h\"\n#include "
      "<fmt/format.h>\n");
  add("include/dfm/low/a.h", "#include <ATen/core/Tensor.h>\n");
  EXPECT_EQ(joined(found()), "");
}

TEST_F(SmallTree, FindsAnIncludeUpwards) {
  add("src/low/a.cpp", "\n#include \"dfm/high/b.h\"\n");
  expect_one("src/low/a.cpp:2: includes dfm/high/b.h: low may not use high");
}

TEST_F(SmallTree, FindsUseOfConfigBeyondItsDeclarations) {
  add("src/high/a.cpp", "#include \"dfm/config/merge.h\"\n");
  expect_one("src/high/a.cpp:1: includes dfm/config/merge.h: high may not use config");
}

TEST_F(SmallTree, FindsAPrivateHeaderOfAnotherLayer) {
  add("src/low/own.h", "");
  add("src/high/a.cpp", "#include \"low/own.h\"\n");
  expect_one("src/high/a.cpp:1: includes low/own.h: a private header of low");
}

TEST_F(SmallTree, FindsALibraryThatTheLayerMayNotName) {
  add("src/high/a.cpp", "#  include <zlib.h>\n");
  expect_one("src/high/a.cpp:1: includes zlib.h: high may not name this library");
}

TEST_F(SmallTree, FindsALibraryInAPublicHeader) {
  add("include/dfm/low/a.h", "#include <ATen/ATen.h>\n");
  expect_one("include/dfm/low/a.h:1: includes ATen/ATen.h: a public header may name ATen/core/Tensor.h and fmt only");
}

TEST_F(SmallTree, FindsAFolderThatIsNoLayer) {
  add("src/other/a.cpp", "");
  expect_one("src/other: not a layer of cmake/DfmLayers.cmake");
}

TEST_F(SmallTree, FindsRanksInCodeButNotInComments) {
  add("src/low/a.cpp",
      "int a;  // of no rank\nconst char* text = \"rank\";\nint my_rank = 0;\nall_reduce(x);\nint franked;\n");
  const auto lines = rank_names(root_, {"low"});
  EXPECT_EQ(joined(lines), "src/low/a.cpp:3: int my_rank = 0;\nsrc/low/a.cpp:4: all_reduce(x);\n");
}

}  // namespace
