// Comma-separated files as RFC 4180 has them.
#include <gtest/gtest.h>

#include "data/csv_file.h"
#include "formats/media_files.h"

namespace dfm::data {
namespace {

using test::error_of;
using test::MediaFolder;
using Fields = std::vector<std::string>;

CsvFile written(const MediaFolder& folder, std::string_view text) {
  test::write_bytes(folder / "table.csv", text);
  return CsvFile(folder / "table.csv");
}

TEST(CsvFile, ReadsQuotesCommasAndLineEnds) {
  const MediaFolder folder;
  const CsvFile csv = written(folder,
                              "\xEF\xBB\xBF\"na\nme\",text,\r\n"
                              "a,\"one, \"\"two\"\"\nthree\",\r\n"
                              "\r\n \n"
                              "\"\",5\" pipe,\"x\"\"\"\n"
                              "\xC3\xA9,,last");
  EXPECT_EQ(csv.columns(), (Fields{"na\nme", "text", ""}));
  ASSERT_EQ(csv.num_rows(), 3U);
  EXPECT_EQ(csv.row(2), (Fields{"\xC3\xA9", "", "last"}));  // in any order
  EXPECT_EQ(csv.row(0), (Fields{"a", "one, \"two\"\nthree", ""}));
  EXPECT_EQ(csv.row(1), (Fields{"", "5\" pipe", "x\""}));
}

TEST(CsvFile, ReadsRowsThatCrossBlocks) {
  const MediaFolder folder;
  std::string text = "number,text\n";
  for (int i = 0; i < 3000; ++i)
    text += std::to_string(i) + ",\"" + std::string(static_cast<std::size_t>(i), 'x') + "\n\"\n";
  const CsvFile csv = written(folder, text);  // 4.5 MB
  ASSERT_EQ(csv.num_rows(), 3000U);
  for (const std::size_t i : {0U, 1U, 1447U, 1448U, 2047U, 2999U}) {
    EXPECT_EQ(csv.row(i), (Fields{std::to_string(i), std::string(i, 'x') + "\n"}));
  }
}

TEST(CsvFile, NamesTheRowThatIsWrong) {
  const MediaFolder folder;
  const auto message_of = [&](std::string_view text) {
    return error_of(ExitCode::kData, [&] { written(folder, text); });
  };
  EXPECT_NE(message_of("").find("no row"), std::string::npos);
  EXPECT_NE(message_of("\n\r\n").find("no row"), std::string::npos);
  EXPECT_NE(message_of("a,b\n1,2\n3,\"4\n5,6\n").find("never ends (row 2)"), std::string::npos);
  const std::string open_quote = "a\n\"" + std::string(18 << 20, '\n');
  EXPECT_NE(message_of(open_quote).find("16 MiB (row 1)"), std::string::npos);
  const CsvFile csv = written(folder, "a,b\n1,2\n3\n4,5,6\n7,8\n");
  EXPECT_EQ(csv.row(0), (Fields{"1", "2"}));
  EXPECT_NE(error_of(ExitCode::kData, [&] { static_cast<void>(csv.row(1)); }).find("1 fields in row 2"),
            std::string::npos);
  EXPECT_NE(error_of(ExitCode::kData, [&] { static_cast<void>(csv.row(2)); }).find("3 fields in row 3"),
            std::string::npos);
  EXPECT_EQ(csv.row(3), (Fields{"7", "8"}));
}

}  // namespace
}  // namespace dfm::data
