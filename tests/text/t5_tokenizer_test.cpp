#include "dfm/text/t5_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "support/files.h"

namespace dfm::text {
namespace {

// On the genuine model of T5; the ids are those of transformers 4.57.1. tests/python/t5_matches_transformers.py
// compares texts.json with it.
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
  EXPECT_EQ(tokenizer_->vocabulary_size(), 32100);
  const auto ids = tokenizer_->encode("{~}");  // characters the model does not know; neighbours merge
  EXPECT_EQ(std::count(ids.begin(), ids.end(), T5Tokenizer::kUnknown), 1);
}

TEST_F(T5TokenizerTest, FindsSpecialTokensInTheText) {
  using Ids = std::vector<std::int32_t>;
  EXPECT_EQ(tokenizer_->encode("a </s> b"), (Ids{3, 9, 1, 3, 115, 1}));
  EXPECT_EQ(tokenizer_->encode("<extra_id_1>x<pad>"), (Ids{32098, 3, 226, 0, 1}));
  EXPECT_EQ(tokenizer_->encode("<extra_id_0><extra_id_99>"), (Ids{32099, 32000, 1}));
  EXPECT_EQ(tokenizer_->encode("<unk>"), (Ids{2, 1}));
}

TEST_F(T5TokenizerTest, LooksMarksUpWithTheirLetter) {
  EXPECT_EQ(tokenizer_->encode("cafe\u0301"), tokenizer_->encode("caf\u00e9"));
  // Seven bytes: code point by code point, as Hugging Face does, so nothing is composed.
  EXPECT_NE(tokenizer_->encode("e\u0301\u0301\u0301"), tokenizer_->encode("\u00e9\u0301\u0301"));
}

TEST_F(T5TokenizerTest, ReadsBytesThatAreNotUtf8AsReplacementCharacters) {
  EXPECT_EQ(tokenizer_->encode("blue\xff red\xc3"), tokenizer_->encode("blue\ufffd red\ufffd"));
}

// A tokenizer.json with a vocabulary of its own.
class TokenizerJson : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  T5Tokenizer open(const std::string& text) {
    write_file_atomically(path_, text);
    return T5Tokenizer(path_);
  }
  static std::string tokenizer(const std::string& normalizer, const std::string& pre_tokenizer,
                               const std::string& added = "") {
    return R"({"model": {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0],
      ["\u2581", -2.0], ["\u2581fly", -3.0], ["f", -5.0], ["l", -5.0], ["y", -5.0]]},
      "normalizer": )" +
           normalizer + R"(, "pre_tokenizer": )" + pre_tokenizer + R"(, "added_tokens": [)" + added + "]}";
  }
  std::filesystem::path path_ = std::filesystem::temp_directory_path() / "dfm_t5_tokenizer_test.json";
};

TEST_F(TokenizerJson, IsReadWithItsRules) {
  using Ids = std::vector<std::int32_t>;
  const std::string always = R"({"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": true})";
  const std::string never = R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"})";
  const std::string first = R"({"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"})";
  const std::string stripping = R"({"id": 9, "content": "<x>", "lstrip": true, "rstrip": true, "special": true})";
  EXPECT_EQ(open(tokenizer("null", always)).encode("fly fly"), (Ids{4, 4, 1}));
  EXPECT_EQ(open(tokenizer("null", never)).encode("fly fly"), (Ids{5, 6, 7, 4, 1}));
  EXPECT_EQ(open(tokenizer("null", never)).encode("q fly"), (Ids{2, 4, 1}));
  const T5Tokenizer strips = open(tokenizer("null", first, stripping));
  EXPECT_EQ(strips.encode("fly  <x> fly"), (Ids{4, 9, 5, 6, 7, 1}));  // `first`: of the whole text
  EXPECT_EQ(strips.vocabulary_size(), 10);
  const std::string words = R"({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, )" + always + "]}";
  EXPECT_EQ(open(tokenizer("null", words)).encode("\tfly\u3000 fly "), (Ids{4, 4, 1}));
}

TEST_F(TokenizerJson, RefusesWhatItDoesNotKnow) {
  const std::string spaces = R"({"type": "Metaspace"})";
  for (const std::string& text :
       {std::string("{}"), std::string(R"({"model": 3})"), tokenizer("null", R"({"type": "ByteLevel"})"),
        tokenizer(R"({"type": "Lowercase"})", spaces), tokenizer("null", "null"),
        tokenizer(R"({"type": "Precompiled", "precompiled_charsmap": "?"})", spaces),
        tokenizer(R"({"type": "Precompiled", "precompiled_charsmap": "AAAA"})", spaces),
        tokenizer("null", spaces, R"({"id": -1, "content": "<x>"})"), tokenizer("null", spaces, "3"),
        std::string(R"({"model": {"type": "Unigram", "vocab": [["<pad>", 0]]}, "pre_tokenizer": null})"),
        std::string(R"({"model": {"type": "BPE", "vocab": {}}})")}) {
    EXPECT_THROW(open(text), DataError) << text;
  }
}

TEST_F(T5TokenizerTest, RefusesModelsThatWereCutOrChanged) {
  const std::string whole = read_text_file(*test::data_dir() / "t5" / "spiece.model");
  const auto path = std::filesystem::temp_directory_path() / "dfm_t5_cut.model";
  for (const std::size_t size : {0UL, 1UL, 3UL, 100UL, 5000UL, 400001UL, 553000UL}) {
    write_file_atomically(path, whole.substr(0, size));
    try {
      const T5Tokenizer cut(path);  // some cuts fall between pieces: a smaller vocabulary
      EXPECT_FALSE(cut.encode("butterfly").empty());
    } catch (const DataError&) {
      continue;
    }
  }
  for (std::size_t at = 553800; at < whole.size(); at += 20011) {  // the character map
    std::string changed = whole;
    for (std::size_t i = at; i < std::min(at + 64, whole.size()); ++i)
      changed[i] = static_cast<char>(changed[i] ^ 0x5A);
    write_file_atomically(path, changed);
    try {
      static_cast<void>(T5Tokenizer(path).encode("cafe\u0301 \u2122 \uff21 \u212b \u3000 x"));
    } catch (const DataError&) {
      continue;
    }
  }
  std::filesystem::remove(path);
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
