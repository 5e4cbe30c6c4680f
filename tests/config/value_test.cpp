#include "dfm/config/value.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "config/example_config.h"
#include "dfm/base/error.h"

namespace dfm::config::test {
namespace {

Value scalar(const std::string& text) {
  Value value;
  value.kind = Value::Kind::kScalar;
  value.text = text;
  return value;
}

TEST(ConfigValue, WritesTheShortestFloatThatReadsBackToTheSameBits) {
  EXPECT_EQ(write(0.9e-4), "9.0e-05");
  EXPECT_EQ(write(0.1), "0.1");
  EXPECT_EQ(write(2.0), "2.0");
  EXPECT_EQ(write(1e22), "1.0e+22");
  for (const double number : {1.0 / 3.0, 0.1 + 0.2, 5e-324, std::numeric_limits<double>::max(), -0.0, 1e-5}) {
    double back = 7;
    ASSERT_TRUE(read(parse_yaml(write(number), "x"), back)) << write(number);
    EXPECT_EQ(std::signbit(back), std::signbit(number));
    EXPECT_EQ(back, number);
  }
}

TEST(ConfigValue, ReadsIntegersOfPython) {
  std::int64_t number = 0;
  EXPECT_TRUE(read(scalar("15_360"), number));
  EXPECT_EQ(number, 15360);
  EXPECT_TRUE(read(scalar("+7"), number));
  EXPECT_EQ(number, 7);
  for (const char* text : {"", "7.0", "1e3", "six", "7 ", "--7", "_7", "99999999999999999999", "0x10"}) {
    EXPECT_FALSE(read(scalar(text), number)) << text;
  }
  EXPECT_EQ(number, 7);
  std::uint64_t natural = 0;
  EXPECT_FALSE(read(scalar("-1"), natural));
  EXPECT_TRUE(read(scalar("18446744073709551615"), natural));
}

TEST(ConfigValue, TakesFiniteNumbersOnly) {
  double number = 1;
  for (const char* text : {"nan", "inf", "-inf", "1e999", "1,5", "0x1p3"}) EXPECT_FALSE(read(scalar(text), number));
  EXPECT_TRUE(read(scalar("1e-4"), number));
  EXPECT_TRUE(read(scalar(".5"), number));
}

TEST(ConfigValue, StringsReadBackWhateverTheyHold) {
  for (const std::string text :
       {"",     "null",        "~",     "true", "12", "1e5", "a b",   " a", "x: y", "x #y", "[1]", "it's \"so\"",
        "a\\b", "line\nbreak", "tab\t", "- a",  "&a", "*a",  "größe", "!x", "a:",   "C:/x", "%",   "@"}) {
    std::string back = "unset";
    ASSERT_TRUE(read(parse_yaml("key: " + write(text), "x").entries.at(0).value, back)) << text;
    EXPECT_EQ(back, text) << write(text);
    ASSERT_TRUE(read(parse_yaml("[" + write(text) + "]", "x").items.at(0), back)) << text;
    EXPECT_EQ(back, text);
  }
}

TEST(ConfigValue, QuotedNullIsText) {
  EXPECT_EQ(parse_yaml("'null'", "x").kind, Value::Kind::kScalar);
  EXPECT_EQ(parse_yaml("null", "x").kind, Value::Kind::kNull);
  EXPECT_EQ(parse_argument("null").kind, Value::Kind::kNull);
  EXPECT_EQ(parse_argument("\"null\"").kind, Value::Kind::kScalar);
  EXPECT_EQ(parse_argument("a #b: c").text, "a #b: c");
}

std::string yaml_error(const std::string& text) {
  try {
    parse_yaml(text, "my.yaml");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(ConfigYaml, SyntaxErrorsNameLineAndColumn) {
  EXPECT_EQ(yaml_error("model:\n  a: [1, 2\nb: 3\n").substr(0, 29), "my.yaml: got a syntax error (");
  EXPECT_NE(yaml_error("a: 1\n\tb: 2\n").find("(my.yaml:2:"), std::string::npos) << yaml_error("a: 1\n\tb: 2\n");
  EXPECT_EQ(yaml_error("a: 1\n---\nb: 2\n"), "my.yaml: got a second YAML document, want one");
  EXPECT_EQ(yaml_error("? [1, 2]\n: 3\n"), "my.yaml: got a list as a key, want a name (my.yaml:1:3)");
}

TEST(ConfigYaml, HostileFilesAreErrorsNotCrashes) {
  EXPECT_NE(yaml_error(std::string(500'000, '[')).find("want at most 32 levels"), std::string::npos);
  EXPECT_NE(yaml_error(std::string(500'000, '{')), "");
  std::string nested;
  for (int i = 0; i < 20'000; ++i) nested += "- ";
  EXPECT_NE(yaml_error(nested).find("want at most 32 levels"), std::string::npos);
  EXPECT_NE(yaml_error(std::string(2 << 20, 'a')).find("bytes"), std::string::npos);
  // A billion laughs.
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + before;
    for (int j = 0; j < 9; ++j) bomb += ", " + before;
    bomb += "]\n";
  }
  EXPECT_NE(yaml_error(bomb).find("do its aliases multiply?"), std::string::npos);
  EXPECT_NE(yaml_error("a: &a [*a]\n").find("an alias to a value that holds it"), std::string::npos);
  EXPECT_NE(yaml_error("a: *b\n"), "");
}

TEST(ConfigYaml, AliasesStandForTheirValue) {
  const Value root = parse_yaml("a: &x 5\nb: *x\n", "x");
  EXPECT_EQ(root.entries.at(1).value.text, "5");
}

TEST(ConfigYaml, RandomBytesAreReadOrRefused) {
  const std::string alphabet = "ab:-[]{},&*!|>'\"%@`#?~ \n\n  \t0.1\xc3\xa9\xff";
  std::uint64_t state = 1;
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = 0; i < 60; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      text += alphabet[(state >> 33) % alphabet.size()];
    }
    try {
      parse_yaml(text, "x");
    } catch (const ConfigError&) {
    }
  }
}

}  // namespace
}  // namespace dfm::config::test
