#include "dfm/base/hash.h"

#include <gtest/gtest.h>

#include <string>

#include "dfm/base/file.h"

namespace dfm {
namespace {

TEST(Fnv1a64, GivesThePublishedValues) {  // draft-eastlake-fnv, test vectors
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325ULL);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8cULL);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8ULL);
  EXPECT_EQ(fnv1a64("bar", fnv1a64("foo")), fnv1a64("foobar"));
}

TEST(Crc32c, GivesTheValuesOfRfc3720) {
  EXPECT_EQ(crc32c(as_bytes("123456789")), 0xe3069283U);
  EXPECT_EQ(crc32c(as_bytes(std::string(32, '\0'))), 0x8a9136aaU);
  EXPECT_EQ(crc32c(as_bytes(std::string(32, '\xff'))), 0x62a8ab43U);
  std::string rising, falling;
  for (char i = 0; i < 32; ++i) rising.push_back(i), falling.push_back(static_cast<char>(31 - i));
  EXPECT_EQ(crc32c(as_bytes(rising)), 0x46dd794eU);
  EXPECT_EQ(crc32c(as_bytes(falling)), 0x113fdb5cU);
  EXPECT_EQ(crc32c({}), 0U);
}

TEST(Crc32c, ContinuesFromTheBytesBefore) {
  const std::string text = "the bytes of a block that is read in pieces of any length";
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    EXPECT_EQ(crc32c(as_bytes(text.substr(cut)), crc32c(as_bytes(text.substr(0, cut)))), crc32c(as_bytes(text)));
  }
}

}  // namespace
}  // namespace dfm
