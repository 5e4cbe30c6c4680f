#include "dfm/text/words.h"

#include <gtest/gtest.h>

namespace dfm::text {
namespace {

using Words = std::vector<std::string>;

TEST(SplitWords, LowersAsciiAndSplitsAtPunctuation) {
  EXPECT_EQ(split_words("A Blue-winged butterfly's  2nd flight, over sand!"),
            (Words{"a", "blue", "winged", "butterfly", "s", "2nd", "flight", "over", "sand"}));
}

TEST(SplitWords, GivesNothingForBlankText) {
  EXPECT_TRUE(split_words("").empty());
  EXPECT_TRUE(split_words(" \t\r\n.,;!").empty());
  EXPECT_TRUE(split_words(std::string_view("\0\0", 2)).empty());
}

TEST(SplitWords, KeepsCharactersBeyondAsciiWhole) {
  EXPECT_EQ(split_words("Le papillon bleuté — été"), (Words{"le", "papillon", "bleuté", "été"}));
  EXPECT_EQ(split_words("蝴蝶。飞舞"), (Words{"蝴蝶", "飞舞"}));
  EXPECT_EQ(split_words("it’s “blue”"), (Words{"it", "s", "blue"}));
  EXPECT_EQ(split_words("red\u00a0wings \U0001F98B"), (Words{"red", "wings", "\U0001F98B"}));
}

TEST(SplitWords, TreatsBytesThatAreNotUtf8AsSeparators) {
  EXPECT_EQ(split_words("blue\xffred"), (Words{"blue", "red"}));
  EXPECT_EQ(split_words("blue\xc3"), (Words{"blue"}));  // cut character
  EXPECT_EQ(split_words("a\xc0\xaf"
                        "b"),
            (Words{"a", "b"}));  // overlong
  EXPECT_EQ(split_words("a\xed\xa0\x80"
                        "b"),
            (Words{"a", "b"}));                                     // surrogate
  EXPECT_EQ(split_words("a\xf5\x80\x80\x80z"), (Words{"a", "z"}));  // beyond Unicode
}

}  // namespace
}  // namespace dfm::text
