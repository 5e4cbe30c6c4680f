#include "dfm/text/t5_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "support/files.h"

namespace dfm::text {
namespace {

// On the genuine model of T5; the ids are those of the T5Tokenizer of transformers 4.57.1.
class T5TokenizerTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto folder = test::data_dir();
    if (!folder) GTEST_SKIP() << "set DFM_DATA_DIR to a folder with t5/spiece.model";
    tokenizer_ = std::make_unique<T5Tokenizer>(*folder / "t5" / "spiece.model");
  }
  std::unique_ptr<T5Tokenizer> tokenizer_;
};

TEST_F(T5TokenizerTest, GivesTheIdsOfTheReference) {
  EXPECT_EQ(
      tokenizer_->encode("a large red butterfly with white spots flapping its wings over green leaves"),
      (std::vector<std::int32_t>{3, 9, 508, 1131, 23337, 28, 872, 6883, 5731, 5341, 165, 13943, 147, 1442, 3231, 1}));
  EXPECT_EQ(tokenizer_->encode("A dramatic, slow-motion shot: 3 monarchs at 704x1280!"),
            (std::vector<std::int32_t>{71, 8417, 6, 2684, 18, 7259, 2538, 10, 220, 28397, 7, 44, 2861, 591, 226, 2122,
                                       2079, 55, 1}));
  EXPECT_EQ(tokenizer_->encode("Ein Schmetterling über dem Fluß, très joli café"),
            (std::vector<std::int32_t>{890, 16724, 15583, 697, 510, 340, 5766, 6712, 6, 1264, 13773, 11949, 1}));
  EXPECT_EQ(tokenizer_->encode("  many   spaces\tand\nlines "), (std::vector<std::int32_t>{186, 4856, 11, 2356, 1}));
  EXPECT_EQ(tokenizer_->encode("naïve ﬁsh ½ ™ ①"),
            (std::vector<std::int32_t>{3, 29, 9, 2, 162, 2495, 209, 2, 357, 3, 2305, 209, 1}));
  EXPECT_EQ(tokenizer_->encode("<curly> {braces} ~tilde~"),
            (std::vector<std::int32_t>{3, 2, 3663, 120, 3155, 3, 2, 1939, 2319, 2, 3, 2, 17, 173, 221, 2, 1}));
  EXPECT_EQ(tokenizer_->encode("蝴蝶 flies"), (std::vector<std::int32_t>{3, 2, 3, 89, 4664, 1}));
}

TEST_F(T5TokenizerTest, EmptyAndBlankTextIsTheEndMark) {
  for (const char* text : {"", " ", " \t\n "}) EXPECT_EQ(tokenizer_->encode(text), (std::vector<std::int32_t>{1}));
}

TEST_F(T5TokenizerTest, CutsLongTextBeforeTheEndMark) {
  std::string text;
  for (int i = 0; i < 600; ++i) text += "butterfly ";
  const auto ids = tokenizer_->encode(text);
  ASSERT_EQ(ids.size(), 512U);
  EXPECT_EQ(ids.back(), T5Tokenizer::kEnd);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), T5Tokenizer::kEnd), 1);
  const auto whole = tokenizer_->encode(text, 100000);
  EXPECT_TRUE(std::equal(ids.begin(), ids.end() - 1, whole.begin()));
  EXPECT_EQ(tokenizer_->encode(text, 1), (std::vector<std::int32_t>{1}));
}

TEST_F(T5TokenizerTest, HasThePiecesOfTheOriginal) {
  EXPECT_EQ(tokenizer_->vocabulary_size(), 32000);
  const auto ids = tokenizer_->encode("{~}");  // characters the model does not know; neighbours merge
  EXPECT_EQ(std::count(ids.begin(), ids.end(), T5Tokenizer::kUnknown), 1);
}

TEST(T5Tokenizer, RefusesAMissingFileAndOneThatIsNoModel) {
  EXPECT_THROW(T5Tokenizer("/nowhere/spiece.model"), DataError);
  const auto path = std::filesystem::temp_directory_path() / "dfm_not_a_model.bin";
  write_file_atomically(path, "this is not a SentencePiece model");
  EXPECT_THROW(T5Tokenizer{path}, DataError);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace dfm::text
