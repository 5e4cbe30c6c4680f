#pragma once
// Small fixed hashes that are part of file formats and of the random-number scheme: their values never change.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace dfm {

// FNV-1a, 64 bits.
constexpr std::uint64_t fnv1a64(std::string_view text, std::uint64_t hash = 0xcbf29ce484222325ULL) {
  for (const char c : text) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3ULL;
  }
  return hash;
}

// CRC-32C (Castagnoli, reflected, as in iSCSI and TFRecord). `crc` is the value of the bytes before.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc = 0);

}  // namespace dfm
