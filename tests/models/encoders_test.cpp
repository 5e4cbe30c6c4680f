// make_tokenizer and make_text_encoder: what names stand for, and what is said of those that stand for nothing.
#include "dfm/models/encoders.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dfm/base/file.h"
#include "models/encoder_files.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::models {
namespace {

namespace fs = std::filesystem;

void touch(const fs::path& path) {
  fs::create_directories(path.parent_path());
  write_file_atomically(path, "{}");
}

TEST(Encoders, BuiltinNeedsNothing) {
  EXPECT_EQ(make_tokenizer("builtin", {})->name(), "builtin");
  EXPECT_EQ(make_text_encoder("builtin", {})->name(), "builtin");
  fetch_tokenizer("builtin", {});
  fetch_text_encoder("builtin", {});
}

TEST(Encoders, NamesThatStandForNothingSayWhatCanBeHad) {
  for (const char* name : {"", "./none", "/none/of/it", "a/b/c", "white space", "../up"}) {
    EXPECT_DFM_ERROR(ExitCode::kConfig, "tokenizer", make_tokenizer(name, {}));
    EXPECT_DFM_ERROR(ExitCode::kConfig, "text_encoder", make_text_encoder(name, {}));
    EXPECT_DFM_ERROR(ExitCode::kConfig, "tokenizer", fetch_tokenizer(name, {}));
  }
}

TEST(Encoders, EmptyFoldersAreDataErrorsThatListWhatIsWanted) {
  const test::TempFolder folder;
  EXPECT_DFM_ERROR(ExitCode::kData, "encoder.jit", make_tokenizer(folder.path().string(), {}));
  EXPECT_DFM_ERROR(ExitCode::kData, "config.json", make_text_encoder(folder.path().string(), {}));
  touch(folder / "config.json");
  EXPECT_DFM_ERROR(ExitCode::kData, "spiece.model", make_text_encoder(folder.path().string(), {}));
  EXPECT_DFM_ERROR(ExitCode::kData, "diffusion_pytorch_model.safetensors", make_tokenizer(folder.path().string(), {}));
  touch(folder / "spiece.model");
  EXPECT_DFM_ERROR(ExitCode::kData, "pytorch_model.bin", make_text_encoder(folder.path().string(), {}));
  touch(folder / "encoder.jit");
  EXPECT_DFM_ERROR(ExitCode::kData, "decoder.jit", make_tokenizer(folder.path().string(), {}));
}

TEST(EncoderFiles, PathsAreNamedByTheirAbsoluteForm) {
  const test::TempFolder folder;
  fs::create_directory(folder / "real");
  fs::create_directory_symlink("real", folder / "link");
  const EncoderPlace place = place_of((folder / "link" / ".").string(), "tokenizer");
  EXPECT_EQ(place.name, fs::canonical(folder / "real").string());
  EXPECT_EQ(place_of("google-t5/t5-11b", "text_encoder").name, "google-t5/t5-11b");
  EXPECT_TRUE(place_of("google-t5/t5-11b", "text_encoder").path.empty());
}

TEST(EncoderFiles, LayoutsOfTokenizers) {
  const test::TempFolder folder;
  const auto find = [&](const std::string& name) {
    return find_tokenizer(place_of((folder / name).string(), "tokenizer"), {});
  };
  touch(folder / "jit" / "encoder.jit");
  touch(folder / "jit" / "decoder.jit");
  touch(folder / "jit" / "mean_std.pt");
  EXPECT_EQ(find("jit").decoder_jit.filename(), "decoder.jit");
  EXPECT_EQ(find("jit").mean_std.filename(), "mean_std.pt");
  EXPECT_EQ(find("jit/decoder.jit").encoder_jit.filename(), "encoder.jit");
  touch(folder / "pipeline" / "model_index.json");
  touch(folder / "pipeline" / "vae" / "config.json");
  touch(folder / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors");
  for (const char* name : {"pipeline", "pipeline/vae", "pipeline/vae/diffusion_pytorch_model.safetensors"}) {
    EXPECT_EQ(find(name).weights.filename(), "diffusion_pytorch_model.safetensors");
    EXPECT_EQ(find(name).config.filename(), "config.json");
  }
  touch(folder / "one.pt");
  EXPECT_EQ(find("one.pt").weights.filename(), "one.pt");
  EXPECT_TRUE(find("one.pt").config.empty());
}

}  // namespace
}  // namespace dfm::models
