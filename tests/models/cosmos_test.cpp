#include "models/cosmos_tokenizer/cosmos_tokenizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <thread>

#include "dfm/formats/safetensors.h"
#include "dfm/formats/torch_file.h"
#include "models/cosmos_tokenizer/random_weights.h"
#include "models/cosmos_tokenizer/tokenizer.h"
#include "support/errors.h"
#include "support/temp_folder.h"
#include "support/tolerance.h"

namespace dfm::models::cosmos {
namespace {

using test::relative_error;

constexpr double kExact = 1e-5;

// The published geometries at tiny widths.
Config tiny(std::int64_t patch, std::int64_t temporal, std::int64_t spatial, std::int64_t levels) {
  Config config;
  config.patch_size = patch;
  config.temporal_compression = temporal;
  config.spatial_compression = spatial;
  config.encoder_widths = {8, 16, 24};
  config.decoder_widths = {16, 24, 24};
  if (levels == 3) {
    config.encoder_widths.push_back(24);
    config.decoder_widths.push_back(24);
  }
  return config;
}
Config cv4x8x8() { return tiny(4, 4, 8, 2); }
Config cv8x8x8() { return tiny(4, 8, 8, 3); }
Config cv8x16x16() { return tiny(4, 8, 16, 3); }
Config cv4x8x8_360p() { return tiny(2, 4, 8, 3); }

Tokenizer make(const Config& config, const EncoderOptions& options = {}) {
  return Tokenizer("tiny", config, {}, random_weights(config, 5, false), options, "memory");
}

at::Tensor random(std::initializer_list<std::int64_t> shape, std::uint64_t seed) {
  at::manual_seed(seed);
  return at::rand(shape) * 2 - 1;
}

double psnr(const at::Tensor& got, const at::Tensor& want) {
  const double range = (want.max() - want.min()).item<double>();
  return 10 * std::log10(range * range / (got - want).square().mean().item<double>());
}

TEST(CosmosPatcher, HaarHasAnExactInverseAndTheMeanAsItsFirstBand) {
  for (const std::int64_t patch : {1, 2, 4}) {
    const Patcher patcher(patch, true, at::kCPU);
    const at::Tensor pixels = random({2, 3, 1 + 2 * patch, 4 * patch, 2 * patch}, 1);
    const at::Tensor patches = patcher.forward(pixels, true);
    ASSERT_EQ(patches.sizes().vec(), (std::vector<std::int64_t>{2, 3, 4, 2, 3 * patch * patch * patch}));
    EXPECT_LT(relative_error(patcher.inverse(patches, true), pixels), 1e-6);
    const at::Tensor later = patcher.forward(pixels.narrow(2, 1, 2 * patch), false);
    EXPECT_TRUE(at::equal(later, patches.narrow(1, 1, 2)));
    EXPECT_LT(relative_error(patcher.inverse(later, false), pixels.narrow(2, 1, 2 * patch)), 1e-6);
    const at::Tensor mean =
        at::avg_pool3d(pixels.narrow(2, 1, 2 * patch), {patch, patch, patch}).permute({0, 2, 3, 4, 1});
    EXPECT_LT(relative_error(later.narrow(-1, 0, 3), mean), 1e-6);
  }
}

TEST(CosmosPatcher, BandsAreTimeThenHeightThenWidth) {
  const Patcher patcher(2, true, at::kCPU);
  for (const int axis : {0, 1, 2}) {  // +1, -1 along one axis: only that axis' high band of colour 1
    std::vector<std::int64_t> shape{1, 1, 1, 1, 1};
    shape[static_cast<std::size_t>(2 + axis)] = 2;
    at::Tensor pixels = at::zeros({1, 3, 2, 2, 2});
    pixels.narrow(1, 1, 1).copy_(at::tensor({1.0F, -1.0F}).view(shape).expand({1, 1, 2, 2, 2}));
    const at::Tensor patches = patcher.forward(pixels, false).flatten();
    at::Tensor want = at::zeros({24});
    want[3 * (4 >> axis) + 1] = 1;
    EXPECT_TRUE(at::equal(patches, want)) << axis;
  }
}

TEST(CosmosPatcher, RearrangedPixelsComeBack) {
  const Patcher patcher(4, false, at::kCPU);
  const at::Tensor pixels = random({1, 3, 5, 8, 8}, 2);
  const at::Tensor patches = patcher.forward(pixels, true);
  EXPECT_TRUE(at::equal(patcher.inverse(patches, true), pixels));
  // Channel 64 c + 16 t + 4 y + x of a block: colour 1, x = 1, the first frame and the first after it.
  const at::Tensor want = pixels.select(1, 1).narrow(1, 0, 2).slice(2, 0, 8, 4).slice(3, 1, 8, 4);
  EXPECT_TRUE(at::equal(patches.select(-1, 64 + 1), want));
}

TEST(CosmosTokenizer, ShapesFollowTheVariant) {
  struct Case {
    Config config;
    std::int64_t frames, height, width, t, h, w;
  };
  for (const Case& c : {Case{cv4x8x8(), 9, 32, 48, 3, 4, 6}, Case{cv8x8x8(), 17, 32, 48, 3, 4, 6},
                        Case{cv8x16x16(), 9, 32, 48, 2, 2, 3}, Case{cv4x8x8_360p(), 9, 32, 48, 3, 4, 6},
                        Case{cv8x8x8(), 1, 40, 24, 1, 5, 3}}) {
    const Tokenizer tokenizer = make(c.config);
    const at::Tensor latent = tokenizer.encode(random({3, c.frames, c.height, c.width}, 3));
    EXPECT_EQ(latent.sizes().vec(), (std::vector<std::int64_t>{16, c.t, c.h, c.w}));
    const at::Tensor pixels = tokenizer.decode(latent);
    EXPECT_EQ(pixels.sizes().vec(), (std::vector<std::int64_t>{3, c.frames, c.height, c.width}));
    EXPECT_TRUE(at::isfinite(pixels).all().item<bool>());
    EXPECT_GT(pixels.std().item<double>(), 1e-3);
  }
}

TEST(CosmosTokenizer, EarlierLatentsDoNotSeeLaterFrames) {
  for (const Config& config : {cv4x8x8(), cv8x8x8()}) {
    const Tokenizer tokenizer = make(config);
    const std::int64_t k = config.temporal_compression;
    const at::Tensor pixels = random({3, 1 + 3 * k, 32, 32}, 4);
    at::Tensor changed = pixels.clone();
    changed.narrow(1, 1 + k, 2 * k).mul_(-1);
    const at::Tensor a = tokenizer.encode(pixels), b = tokenizer.encode(changed);
    EXPECT_LT(relative_error(b.narrow(1, 0, 2), a.narrow(1, 0, 2)), kExact);
    EXPECT_GT(relative_error(b.narrow(1, 2, 1), a.narrow(1, 2, 1)), 1e-3);
    EXPECT_LT(relative_error(a.narrow(1, 0, 1), tokenizer.encode(pixels.narrow(1, 0, 1))), kExact);
    const at::Tensor first = tokenizer.decode(a.narrow(1, 0, 1));
    EXPECT_LT(relative_error(tokenizer.decode(a).narrow(1, 0, 1), first), kExact);
  }
}

TEST(CosmosTokenizer, PiecesAndStripsEqualTheWhole) {
  for (const Config& config : {cv4x8x8(), cv8x8x8(), cv8x16x16(), cv4x8x8_360p()}) {
    Tokenizer tokenizer = make(config);
    tokenizer.set_cuts({.latent_frames = 100});
    const at::Tensor pixels = random({3, 1 + 4 * config.temporal_compression, 64, 32}, 5);
    const at::Tensor latent = tokenizer.encode(pixels), decoded = tokenizer.decode(latent);
    const at::Tensor picture = tokenizer.encode(pixels.narrow(1, 0, 1));
    for (const Cuts& cuts :
         {Cuts{.latent_frames = 1}, Cuts{.latent_frames = 2}, Cuts{.latent_frames = 3},
          Cuts{.latent_frames = 100, .strip_bytes = 1}, Cuts{.latent_frames = 2, .strip_bytes = 7000}, Cuts{}}) {
      tokenizer.set_cuts(cuts);
      EXPECT_LT(relative_error(tokenizer.encode(pixels), latent), kExact);
      EXPECT_LT(relative_error(tokenizer.encode(pixels.narrow(1, 0, 1)), picture), kExact);
      std::vector<at::Tensor> pieces;
      tokenizer.decode_frames(latent, [&](const at::Tensor& frames) { pieces.push_back(frames.clone()); });
      if (cuts.latent_frames == 1) {
        EXPECT_EQ(pieces.size(), 5U);
      }
      EXPECT_LT(relative_error(at::cat(pieces, 1), decoded), kExact);
    }
  }
}

TEST(CosmosTokenizer, BatchesEqualOneByOneAndBytesEqualFloats) {
  const Tokenizer tokenizer = make(cv4x8x8());
  at::manual_seed(6);
  for (const std::int64_t frames : {1, 5}) {
    const at::Tensor bytes = at::randint(0, 256, {3, 3, frames, 16, 32}, at::kByte);
    const at::Tensor batch = tokenizer.encode_batch(bytes);
    for (std::int64_t i = 0; i < 3; ++i) {
      EXPECT_LT(relative_error(batch[i], tokenizer.encode(bytes[i].to(at::kFloat) / 127.5 - 1)), kExact);
    }
  }
}

TEST(CosmosTokenizer, ThreadsMayShareOne) {
  const Tokenizer tokenizer = make(cv8x8x8());
  const at::Tensor a = random({3, 9, 16, 16}, 7), b = random({3, 17, 32, 16}, 8);
  const at::Tensor want_a = tokenizer.encode(a), want_b = tokenizer.encode(b);
  double worst[2] = {1, 1};
  std::thread other([&] { worst[0] = relative_error(tokenizer.encode(a), want_a); });
  worst[1] = relative_error(tokenizer.encode(b), want_b);
  other.join();
  EXPECT_LT(worst[0], kExact);
  EXPECT_LT(worst[1], kExact);
}

TEST(CosmosTokenizer, ASmallWindowIsNearAndAWideOneExact) {
  const Config config = cv8x8x8();
  const at::Tensor latent = random({16, 12, 4, 4}, 9);
  const at::Tensor whole = make(config).decode(latent);
  double previous = 0;
  for (const std::int64_t window : {1, 4, 8}) {
    EncoderOptions options;
    options.decode_window = window;
    Tokenizer tokenizer = make(config, options);
    const at::Tensor near = tokenizer.decode(latent);
    tokenizer.set_cuts({.latent_frames = 1});
    EXPECT_LT(relative_error(tokenizer.decode(latent), near), kExact);  // the pieces do not matter
    const std::int64_t exact_frames = 1 + window * config.temporal_compression;
    EXPECT_LT(relative_error(near.narrow(1, 0, exact_frames), whole.narrow(1, 0, exact_frames)), kExact);
    const double value = psnr(near, whole);
    RecordProperty("window_" + std::to_string(window), std::to_string(value));
    EXPECT_GT(value, 25);
    EXPECT_GT(value, previous);
    EXPECT_LT(value, 100);
    previous = value;
  }
  EncoderOptions options;
  options.decode_window = 11;
  EXPECT_LT(relative_error(make(config, options).decode(latent), whole), kExact);
}

TEST(CosmosTokenizer, BlendedTilesAreNearTheWhole) {
  const Config config = cv4x8x8();
  EncoderOptions options;
  options.tile = 64;
  Tokenizer tiled = make(config, options);
  const Tokenizer whole = make(config);
  const at::Tensor pixels = random({3, 5, 128, 96}, 10);
  const at::Tensor latent = whole.encode(pixels), decoded = whole.decode(latent);
  const double encode_psnr = psnr(tiled.encode(pixels), latent), decode_psnr = psnr(tiled.decode(latent), decoded);
  RecordProperty("encode_psnr", std::to_string(encode_psnr));
  RecordProperty("decode_psnr", std::to_string(decode_psnr));
  EXPECT_GT(encode_psnr, 20);
  EXPECT_GT(decode_psnr, 20);
  EXPECT_LT(decode_psnr, 100);
  tiled.set_cuts({.latent_frames = 1});
  EXPECT_NEAR(psnr(tiled.decode(latent), decoded), decode_psnr, 0.01);
  options.tile = 128;  // one tile
  EXPECT_LT(relative_error(make(config, options).decode(latent), decoded), kExact);
  options.tile = 8;
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got 8, want 0 or at least 64", make(config, options));
}

TEST(CosmosTokenizer, BfloatIsNearFloat) {
  EncoderOptions options;
  options.precision = Precision::kBf16;
  const at::Tensor pixels = random({3, 9, 16, 16}, 11);
  const at::Tensor latent = make(cv8x8x8()).encode(pixels);
  EXPECT_LT(relative_error(make(cv8x8x8(), options).encode(pixels), latent), 0.1);
}

TEST(CosmosTokenizer, WrongShapesAreNamed) {
  const Tokenizer tokenizer = make(cv8x8x8());
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got shape 1x3x4x16x16, want [N, 3, 1 + 8 n, 8 h, 8 w]",
                   tokenizer.encode(at::zeros({3, 4, 16, 16})));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got shape 1x3x1x12x16", tokenizer.encode(at::zeros({3, 1, 12, 16})));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got shape 3x16x16, want [3, T, H, W]", tokenizer.encode(at::zeros({3, 16, 16})));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "got shape 8x1x2x2, want [16, t, h, w]",
                   tokenizer.decode(at::zeros({8, 1, 2, 2})));
}

// Files -------------------------------------------------------------------------------------------------------------

class CosmosFilesTest : public testing::Test {
 protected:
  std::filesystem::path write(const NamedTensors& tensors, const std::string& name = "x.safetensors") {
    formats::write_safetensors(folder_ / name, {tensors.begin(), tensors.end()});
    return folder_ / name;
  }
  std::unique_ptr<VideoTokenizer> open(const NamedTensors& tensors, const std::string& name = "tiny") {
    CosmosFiles files;
    files.name = name;
    files.weights = write(tensors);
    return open_cosmos(files, {});
  }
  test::TempFolder folder_;
};

// Samplers that old files store where the network has none.
void add_unused_sampler(NamedTensors& tensors, const std::string& name, std::int64_t channels, bool temporal_only) {
  for (const int conv : {1, 2, 3}) {
    if (temporal_only && conv != (name.starts_with("encoder") ? 2 : 1)) continue;
    tensors[fmt::format("{}.conv{}.conv3d.weight", name, conv)] = at::zeros({channels, channels, 3, 1, 1});
    tensors[fmt::format("{}.conv{}.conv3d.bias", name, conv)] = at::zeros({channels});
  }
}

TEST_F(CosmosFilesTest, VariantsAreKnownFromNativeTensorsDespiteWhatIsUnused) {
  const at::Tensor pixels = random({3, 9, 32, 32}, 12);
  const auto check = [&](const Config& config, const NamedTensors& tensors, const std::string& name) {
    const auto tokenizer = open(tensors, name);
    EXPECT_EQ(tokenizer->temporal_compression(), config.temporal_compression);
    EXPECT_EQ(tokenizer->spatial_compression(), config.spatial_compression);
    const at::Tensor latent = make(config).encode(pixels);
    EXPECT_LT(relative_error(tokenizer->encode(pixels), latent), kExact);
    EXPECT_LT(relative_error(tokenizer->decode(latent), make(config).decode(latent)), kExact);
  };
  NamedTensors tensors = random_weights(cv4x8x8(), 5, true);
  add_unused_sampler(tensors, "encoder.down.0.downsample", 16, true);
  add_unused_sampler(tensors, "decoder.up.1.upsample", 24, true);
  check(cv4x8x8(), tensors, "old");
  tensors = random_weights(cv8x8x8(), 5, true);
  check(cv8x8x8(), tensors, "new");
  add_unused_sampler(tensors, "encoder.down.1.downsample", 24, false);
  add_unused_sampler(tensors, "decoder.up.2.upsample", 24, false);
  tensors["encoder.patcher3d.wavelets"] = at::ones({2});
  tensors["decoder.unpatcher3d.wavelets"] = at::ones({2});
  check(cv8x8x8(), tensors, "old");
  check(cv8x16x16(), random_weights(cv8x16x16(), 5, true), "new");
  check(cv4x8x8_360p(), random_weights(cv4x8x8_360p(), 5, true), "new");
  check(cv8x16x16(), random_weights(cv8x16x16(), 5, true), "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16");
  check(cv8x16x16(), random_weights(cv8x16x16(), 5, true), "CV4x8x8_and_others/Cosmos-0.1-Tokenizer-CV8x16x16");
}

TEST_F(CosmosFilesTest, TensorsThatDoNotFitAreNamedAndCounted) {
  NamedTensors tensors = random_weights(cv8x8x8(), 5, true);
  tensors.erase("decoder.mid.block_1.conv1.0.conv3d.weight");
  EXPECT_DFM_ERROR(ExitCode::kData,
                   "tensor decoder.mid.block_1.conv1.0.conv3d.weight: missing, want shape 24x24x1x3x3 (",
                   open(tensors));
  tensors["decoder.norm_out.norm.weight"] = at::ones({7});
  tensors["decoder.extra"] = at::ones({7});
  EXPECT_DFM_ERROR(ExitCode::kData, "conv3d.weight: missing, want shape 24x24x1x3x3 and 2 more such faults (",
                   open(tensors));
  tensors = random_weights(cv8x8x8(), 5, false);
  tensors["encoder.mid_block.resnets.0.norm1.norm.bias"] = at::ones({7});
  EXPECT_DFM_ERROR(ExitCode::kData, "encoder.mid_block.resnets.0.norm1.norm.bias: got shape 7, want 24 (",
                   open(tensors));
  tensors = random_weights(cv8x8x8(), 5, false);
  tensors["surprise"] = at::ones({1});
  EXPECT_DFM_ERROR(ExitCode::kData, "tensor surprise: no such tensor in this network (", open(tensors));
  EXPECT_DFM_ERROR(ExitCode::kData, "without encoder.conv_in.conv_s.weight", open({{"a", at::ones({1})}}));
}

TEST_F(CosmosFilesTest, ConfigJsonDecidesAndIsChecked) {
  const auto config_with = [&](const std::string& changes) {
    std::ofstream(folder_ / "config.json")
        << R"({"_class_name": "AutoencoderKLCosmos", "encoder_block_out_channels": [8, 16, 24, 24],
               "decode_block_out_channels": [16, 24, 24, 24], "attention_resolutions": [32], "resolution": 1024,
               "latents_mean": null, "latents_std": null)"
        << changes << "}";
    CosmosFiles files;
    files.config = folder_ / "config.json";
    files.weights = write(random_weights(cv8x8x8(), 5, false));
    return open_cosmos(files, {});
  };
  EXPECT_EQ(config_with("")->temporal_compression(), 8);
  EXPECT_EQ(config_with("")->latent_statistics().num_frames, 0);
  const std::string sixteen = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]";
  const LatentStatistics statistics =
      config_with(R"(, "latents_mean": )" + sixteen + R"(, "latents_std": )" + sixteen)->latent_statistics();
  EXPECT_EQ(statistics.num_frames, 1);
  EXPECT_EQ(statistics.std[15], 16);
  EXPECT_DFM_ERROR(ExitCode::kConfig, "latents_mean and latents_std: got 2 and 0",
                   config_with(R"(, "latents_mean": [1, 2])"));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "patch_type: got fourier, want haar or rearrange",
                   config_with(R"(, "patch_type": "fourier")"));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "patch_size of a Cosmos tokenizer: got 3", config_with(R"(, "patch_size": 3)"));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "num_layers: got \"two\", want a number",
                   config_with(R"(, "num_layers": "two")"));
  EXPECT_DFM_ERROR(ExitCode::kConfig, "compression of a Cosmos tokenizer's",
                   config_with(R"(, "spatial_compression_ratio": 64)"));
  EXPECT_DFM_ERROR(ExitCode::kData, "missing", config_with(R"(, "num_layers": 3)"));
}

TEST_F(CosmosFilesTest, MeanAndStdComeFromTheirFile) {
  CosmosFiles files;
  files.name = "tiny";
  files.weights = write(random_weights(cv4x8x8(), 5, true));
  files.mean_std = folder_ / "mean_std.pt";
  const at::Tensor pair = at::arange(2 * 256, at::kFloat).view({2, 256});
  std::ofstream(files.mean_std, std::ios::binary) << formats::torch_save_tensor(pair);
  const LatentStatistics statistics = open_cosmos(files, {})->latent_statistics();
  EXPECT_EQ(statistics.num_frames, 16);
  EXPECT_EQ(statistics.mean[17], 17);
  EXPECT_EQ(statistics.std[0], 256);
  std::ofstream(files.mean_std, std::ios::binary) << formats::torch_save_tensor(at::zeros({2, 7}));
  EXPECT_DFM_ERROR(ExitCode::kData, "want two tensors of 16 x frames values", open_cosmos(files, {}));
  std::ofstream(files.mean_std, std::ios::binary) << formats::torch_save_tensor(at::zeros({2, 256}));
  EXPECT_DFM_ERROR(ExitCode::kData, "mean_std.pt: got a latent standard deviation of 0", open_cosmos(files, {}));
}

}  // namespace
}  // namespace dfm::models::cosmos
