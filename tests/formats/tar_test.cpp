#include "dfm/formats/tar.h"

#include <gtest/gtest.h>

#include <random>

#include "dfm/base/error.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::formats {
namespace {

using std::string_literals::operator""s;

std::string octal(std::uint64_t value, int digits) { return fmt::format("{:0{}o}", value, digits) + '\0'; }

// A member as other writers make it: header (with checksum), content, padding.
std::string member(const std::string& name, char type, const std::string& content, const std::string& size_field = "") {
  std::string block(512, '\0');
  block.replace(0, name.size(), name);
  block.replace(100, 8, octal(0644, 7));
  block.replace(124, 12, size_field.empty() ? octal(content.size(), 11) : size_field);
  block.replace(136, 12, octal(0, 11));
  block[156] = type;
  block.replace(257, 8, "ustar\00000"s);
  block.replace(148, 8, "        ");
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  block.replace(148, 8, octal(sum, 6) + " ");
  std::string out = block + content;
  out.resize((out.size() + 511) / 512 * 512, '\0');
  return out;
}
std::string pax(const std::string& key, const std::string& value) {
  std::size_t length = key.size() + value.size() + 3;
  length += std::to_string(length + 1).size();
  return fmt::format("{} {}={}\n", length, key, value);
}
const std::string kEnd(1024, '\0');

TarListing list(const std::string& archive) { return read_tar_listing(as_bytes(archive), "t.tar"); }

TEST(TarWriter, PadsToTenKilobytes) {
  const test::TempFolder temp;
  TarWriter writer(temp / "a.tar");
  const TarMember first = writer.add("000000.json", as_bytes("{}"));
  const TarMember second = writer.add("000000.pth", as_bytes(std::string(513, 'x')));
  const std::uint64_t end = writer.offset();
  writer.close();
  EXPECT_EQ(std::filesystem::file_size(temp / "a.tar"), 10240U);
  EXPECT_EQ(first.data_offset, 512U);
  EXPECT_EQ(second.header_offset, 1024U);
  EXPECT_EQ(end, 1024U + 512 + 1024);
  const TarListing listing = read_tar_listing(temp / "a.tar");
  ASSERT_EQ(listing.members.size(), 2U);
  EXPECT_EQ(listing.end_offset, end);
  EXPECT_EQ(listing.members[1].name, "000000.pth");
  EXPECT_EQ(listing.members[1].data_offset, second.data_offset);
  EXPECT_EQ(listing.members[1].size, 513U);
}

TEST(TarWriter, EndOfArchiveAlwaysHasTwoZeroBlocks) {
  const test::TempFolder temp;
  TarWriter writer(temp / "a.tar");
  writer.add("a.bin", as_bytes(std::string(10240 - 512 - 512, 'x')));  // leaves one block of the record
  writer.close();
  EXPECT_EQ(std::filesystem::file_size(temp / "a.tar"), 20480U);
  EXPECT_EQ(list_tar(temp / "a.tar").size(), 1U);
}

TEST(TarWriter, LongNamesUseThePrefixField) {
  const test::TempFolder temp;
  const std::string name = std::string(120, 'd') + "/" + std::string(90, 'f') + ".json";
  TarWriter writer(temp / "a.tar");
  writer.add(name, as_bytes("{}"));
  EXPECT_DFM_ERROR(ExitCode::kData, "want at most 100", writer.add(std::string(101, 'f'), {}));
  writer.close();
  EXPECT_EQ(list_tar(temp / "a.tar").at(0).name, name);
}

TEST(TarReader, UnderstandsPaxGnuAndBase256) {
  const std::string long_name(150, 'n');
  const std::string base256 = "\x80"s + std::string(10, '\0') + "\x03";
  const std::string archive = member("g", 'g', pax("comment", "hi")) +
                              member("./PaxHeaders/a", 'x', pax("mtime", "1.5")) + member("a.json", '0', "{}") +
                              member("././@LongLink", 'L', long_name + '\0') + member("n", '0', "long") +
                              member("./PaxHeaders/b", 'x', pax("path", "dir/b.pth") + pax("size", "5")) +
                              member("b", '0', "12345", octal(5, 11)) + member("folder/", '5', "") +
                              member("link", '2', "") + member("c.bin", '\0', "abc", base256) + kEnd;
  const TarListing listing = list(archive);
  ASSERT_EQ(listing.members.size(), 4U);
  EXPECT_EQ(listing.members[0].name, "a.json");
  EXPECT_EQ(listing.members[0].header_offset, 1024U);  // its pax header, not the global one
  EXPECT_EQ(listing.members[0].data_offset, 2560U);
  EXPECT_EQ(listing.members[1].name, long_name);
  EXPECT_EQ(listing.members[2].name, "dir/b.pth");
  EXPECT_EQ(listing.members[2].size, 5U);
  EXPECT_EQ(listing.members[3].size, 3U);
  EXPECT_EQ(listing.end_offset, archive.size() - 1024);
}

TEST(TarReader, CutAndDamagedArchivesAreDataErrors) {
  const std::string good = member("a.json", '0', "{}") + member("b.bin", '0', std::string(2000, 'x')) + kEnd;
  EXPECT_EQ(list(good).members.size(), 2U);
  for (std::size_t size = 0; size < good.size(); size += 100) {
    EXPECT_DFM_ERROR(ExitCode::kData, "t.tar: got", list(good.substr(0, size)));
  }
  std::string damaged = good;
  damaged[1024 + 3] ^= 1;
  EXPECT_DFM_ERROR(ExitCode::kData, "wrong checksum", list(damaged));
  EXPECT_DFM_ERROR(ExitCode::kData, "one zero block", list(good.substr(0, 1024) + std::string(512, '\0') + good));
  EXPECT_DFM_ERROR(ExitCode::kData, "pax", list(member("p", 'x', "99 path=a\n") + member("a", '0', "") + kEnd));
  EXPECT_DFM_ERROR(ExitCode::kData, "sparse", list(member("s", 'S', "") + kEnd));
  EXPECT_DFM_ERROR(ExitCode::kData, "valid size", list(member("s", '0', "", "12x45678901\0"s) + kEnd));
  EXPECT_DFM_ERROR(ExitCode::kData, "cut short", list(member("s", '0', "", "77777777777\0"s) + kEnd));
}

TEST(TarReader, RandomDamageNeverCrashes) {
  const std::string good = member("h", 'x', pax("path", "q.json") + pax("mtime", "1")) + member("a.json", '0', "{}") +
                           member("b.bin", '0', std::string(700, 'x')) + kEnd;
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good;
    bytes[random() % bytes.size()] = static_cast<char>(random());
    try {
      static_cast<void>(list(bytes));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kData);
    }
  }
}

TEST(SampleName, EndsAtTheFirstDotOfTheBaseName) {
  const auto plain = split_sample_name("000001.pth");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->key + "|" + plain->part, "000001|pth");
  const auto nested = split_sample_name("v1.2/000001.left.png");
  ASSERT_TRUE(nested);
  EXPECT_EQ(nested->key + "|" + nested->part, "v1.2/000001|left.png");
  EXPECT_FALSE(split_sample_name("README"));
  EXPECT_FALSE(split_sample_name(".hidden"));
  EXPECT_FALSE(split_sample_name("__meta__/a.json"));
  EXPECT_FALSE(split_sample_name("__index__"));
}

TEST(TarIndex, RoundTripAndCutFile) {
  const test::TempFolder temp;
  const std::vector<std::uint64_t> offsets = {0, 1536, std::uint64_t{1} << 40};
  write_tar_index(temp / "a.tar.idx", offsets);
  EXPECT_EQ(read_tar_index(temp / "a.tar.idx"), offsets);
  EXPECT_EQ(std::filesystem::file_size(temp / "a.tar.idx"), 24U);
  std::filesystem::resize_file(temp / "a.tar.idx", 20);
  EXPECT_DFM_ERROR(ExitCode::kData, "cut short", read_tar_index(temp / "a.tar.idx"));
}

}  // namespace
}  // namespace dfm::formats
