// Tars: what is listed must lie in the archive.
#include "dfm/formats/tar.h"
#include "fuzz/fuzz_target.h"

namespace {

std::string tar_block(const std::string& name, char type, const std::string& content) {
  std::string block(512, '\0');
  block.replace(0, name.size(), name);
  block.replace(124, 11, fmt::format("{:011o}", content.size()));
  block[156] = type;
  block.replace(257, 8, std::string("ustar\00000", 8));
  block.replace(148, 8, "        ");
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  block.replace(148, 6, fmt::format("{:06o}", sum));
  std::string out = block + content;
  out.resize((out.size() + 511) / 512 * 512, '\0');
  return out;
}

// Headers with right checksums, so that mutations reach the fields.
std::string with_checksums(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  for (std::size_t block = 0; block + 512 <= bytes.size(); block += 512) {
    if (bytes.compare(block + 257, 5, "ustar") != 0) continue;
    bytes.replace(block + 148, 8, "        ");
    unsigned sum = 0;
    for (std::size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>(bytes[block + i]);
    bytes.replace(block + 148, 7, fmt::format("{:06o}", sum) + '\0');
  }
  return bytes;
}

void list(std::span<const std::byte> archive) {
  dfm::test::expect_data_errors_only([&] {
    const auto listing = dfm::formats::read_tar_listing(archive, "input");
    for (const auto& member : listing.members) {
      if (member.data_offset > archive.size() || member.size > archive.size() - member.data_offset) std::abort();
      static_cast<void>(dfm::formats::split_sample_name(member.name));
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  list(dfm::test::fuzz_bytes(data, size));
  list(dfm::as_bytes(with_checksums(data, size)));
  return 0;
}

std::vector<std::string> fuzz_seeds() {
  const std::string end(1024, '\0');
  return {tar_block("000000.json", '0', "{}") + tar_block("000000.pth", '0', std::string(600, 'x')) + end,
          tar_block("h", 'x', "17 path=a/b.json\n16 mtime=1.2345\n") + tar_block("b", '0', "{}") + end,
          tar_block("h", 'g', "13 comment=x\n") + tar_block("l", 'L', std::string(120, 'n')) + tar_block("n", '0', "") +
              end,
          tar_block("h", 'x', "9 size=2\n") + tar_block("folder/", '5', "") + tar_block("s", '2', "") + end};
}
