#pragma once
// Pictures, clips and folders for tests of media.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"

namespace dfm::test {

// A folder of its own for each test, removed at the end.
class MediaFolder {
 public:
  MediaFolder() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            (std::string("dfm_") + info->test_suite_name() + "_" + info->name() + "_" + std::to_string(::getpid()));
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~MediaFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  MediaFolder(const MediaFolder&) = delete;
  MediaFolder& operator=(const MediaFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// The real media, if this machine has them: DFM_DATA_DIR, else beside the source. Tests use generated input as well.
inline std::filesystem::path real_media_dir() {
  if (const char* folder = std::getenv("DFM_DATA_DIR")) return folder;
  const std::filesystem::path beside = std::filesystem::path(DFM_SOURCE_DIR) / ".." / "shared" / "data";
  return std::filesystem::exists(beside) ? beside : std::filesystem::path();
}

// A smooth picture, different in each channel and at each time.
inline at::Tensor smooth_picture(std::int64_t height, std::int64_t width, double time = 0) {
  const at::Tensor y = at::linspace(0, 1, height, at::kDouble).view({-1, 1});
  const at::Tensor x = at::linspace(0, 1, width, at::kDouble).view({1, -1});
  const at::Tensor red = 128 + 100 * at::sin(3 * x + 2 * y + time);
  const at::Tensor green = 128 + 100 * at::cos(2 * x - 3 * y - time);
  const at::Tensor blue = 128 + 100 * at::sin(4 * x * y + 1 + time);
  return at::stack({red, green, blue}, -1).round().clamp(0, 255).to(at::kByte);
}

inline at::Tensor smooth_clip(std::int64_t frames, std::int64_t height, std::int64_t width) {
  std::vector<at::Tensor> all;
  for (std::int64_t t = 0; t < frames; ++t) all.push_back(smooth_picture(height, width, .1 * static_cast<double>(t)));
  return at::stack(all);
}

inline double psnr(const at::Tensor& a, const at::Tensor& b) {
  const double mse = (a.to(at::kDouble) - b.to(at::kDouble)).square().mean().item<double>();
  return mse == 0 ? 999 : 10 * std::log10(255.0 * 255.0 / mse);
}

inline std::int64_t max_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kLong) - b.to(at::kLong)).abs().max().item<std::int64_t>();
}

// The message of the Error that `body` must throw, its exit code checked.
template <typename Body>
std::string error_of(ExitCode code, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

// `bytes` with some replaced, at places and by values that depend on `seed` only.
inline std::string flipped(std::string bytes, std::uint64_t seed, int count) {
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (int i = 0; i < count; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    bytes[state % bytes.size()] ^= static_cast<char>(1U << (state >> 40) % 8);
  }
  return bytes;
}

}  // namespace dfm::test
