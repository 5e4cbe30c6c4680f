// `dfm inspect` of small data sets, checkpoints and files: the facts as JSON, what people see, and what is damaged.
#include "dfm/inspect/inspect.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "data/small_dataset.h"
#include "dfm/base/file.h"
#include "dfm/base/progress.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/checkpoint/run_folder.h"
#include "dfm/checkpoint/tensor_file.h"
#include "dfm/formats/media.h"
#include "dfm/formats/safetensors.h"
#include "dfm/formats/tar.h"
#include "dfm/formats/torch_file.h"
#include "inspect/facts.h"
#include "support/errors.h"
#include "support/temp_folder.h"

namespace dfm::inspect {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Report report_of(const fs::path& path, const std::function<void(InspectOptions&)>& change = {}) {
  InspectOptions options;
  options.path = path;
  if (change) change(options);
  return run(options, at::kCPU);
}
Json facts_of(const fs::path& path, std::function<void(InspectOptions&)> change = {}) {
  const Report report = report_of(path, [&](InspectOptions& options) {
    options.json = true;
    if (change) change(options);
  });
  return Json::parse(report.text);
}

TEST(InspectDataset, CountsSizesCaptionsLatentsTokensAndPacking) {
  const test::TempFolder folder;
  test::write_small_dataset(folder / "data", 12, 5);
  const Json facts = facts_of(folder / "data");
  EXPECT_EQ(facts["kind"], "data set");
  EXPECT_EQ(facts["status"], "complete");
  EXPECT_EQ(facts["num_samples"], 12);
  EXPECT_EQ(facts["num_clips"], 4);  // every third
  EXPECT_EQ(facts["num_images"], 8);
  EXPECT_EQ(facts["num_shards"], 3);
  EXPECT_EQ(facts["tokenizer"], "builtin");
  EXPECT_EQ(facts["sizes"].size(), 4u);
  EXPECT_EQ(facts["sizes"][0]["samples"], 4);
  EXPECT_EQ(facts["captions"]["examples"][0], "caption 0");
  EXPECT_EQ(facts["text_rows"]["max"], 12);
  EXPECT_EQ(facts["text_rows"]["min"], 1);
  EXPECT_EQ(facts["splits"][1]["samples"], 12) << facts["splits"];
  // The statistics are those of all values, as all samples were read.
  at::Tensor all;
  for (std::int64_t i = 0; i < 12; ++i) {
    const at::Tensor flat = test::small_latent(i).to(at::kBFloat16).to(at::kDouble).flatten(1);
    all = all.defined() ? at::cat({all, flat}, 1) : flat;
  }
  EXPECT_EQ(facts["latents"]["samples_read"], 12);
  EXPECT_EQ(facts["latents"]["bad"], 0);
  EXPECT_NEAR(facts["latents"]["mean"].get<double>(), all.mean().item<double>(), 1e-9);
  EXPECT_NEAR(facts["latents"]["std"].get<double>(), all.std(false).item<double>(), 1e-9);
  EXPECT_NEAR(facts["latents"]["channel_mean"][3].get<double>(), all[3].mean().item<double>(), 1e-9);
  EXPECT_NEAR(facts["latents"]["channel_std"][15].get<double>(), all[15].std(false).item<double>(), 1e-9);
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < 12; ++i) tokens += test::small_latent(i).numel() / 16 / 4;
  EXPECT_EQ(facts["tokens"]["all_samples"], tokens);
  EXPECT_EQ(facts["packing"]["samples_too_long"], 0);
  EXPECT_GT(facts["packing"]["efficiency"], 0.0);
  EXPECT_LE(facts["packing"]["efficiency"], 1.0);
  const Json small = facts_of(folder / "data", [](InspectOptions& o) { o.task_encoder_seq_length = 10; });
  EXPECT_EQ(small["packing"]["samples_too_long"], 4);  // the clips: 12 and 18 tokens
}

TEST(InspectDataset, ReadsWellAndSaysTheSame) {
  const test::TempFolder folder;
  test::write_small_dataset(folder / "data", 3, 5);
  const std::string text = report_of(folder / "data").text;
  EXPECT_TRUE(text.starts_with((folder / "data").string() + ": data set, complete\n")) << text;
  for (const char* words : {"num samples", "caption 1", "packing:", "channel mean", "builtin"}) {
    EXPECT_NE(text.find(words), std::string::npos) << words << "\n" << text;
  }
}

TEST(InspectDataset, SaysThatItIsUnfinished) {
  const test::TempFolder folder;
  test::write_small_dataset(folder / "data", 6, 3, /*with_shared_files=*/false);
  fs::create_directory(folder.path() / "data" / data::kUnfinishedName);
  const Report report = report_of(folder / "data", [](InspectOptions& o) { o.json = true; });
  const Json facts = Json::parse(report.text);
  EXPECT_EQ(facts["status"], "unfinished");
  EXPECT_EQ(facts["num_samples"], 6);
  EXPECT_EQ(facts["num_shards"], 2);
  EXPECT_EQ(report.code, ExitCode::kOk);
}

TEST(InspectDataset, SaysWhatIsDamagedAndWhatIsThere) {
  const test::TempFolder folder;
  const auto shards = test::write_small_dataset(folder / "data", 6, 3);
  fs::remove(folder.path() / "data" / shards[1]);
  const Report report = report_of(folder / "data", [](InspectOptions& o) { o.json = true; });
  const Json facts = Json::parse(report.text);
  EXPECT_EQ(facts["status"], "damaged");
  EXPECT_EQ(facts["problem"], report.problem);
  EXPECT_FALSE(report.problem.empty());
  EXPECT_EQ(facts["tokenizer"], "builtin");  // the card is whole
  EXPECT_EQ(report.code, ExitCode::kData);
}

TEST(InspectTar, ShowsPreparedSamplesAndRawOnes) {
  const test::TempFolder folder;
  const auto shards = test::write_small_dataset(folder / "data", 6, 6);
  const Json prepared = facts_of(folder.path() / "data" / shards[0]);
  EXPECT_EQ(prepared["kind"], "tar");
  EXPECT_EQ(prepared["num_samples"], 6);
  EXPECT_EQ(prepared["num_clips"], 2);
  EXPECT_EQ(prepared["parts"].size(), 3u);

  fs::create_directory(folder / "raw");
  formats::TarWriter tar(folder.path() / "raw" / "a.tar");
  tar.add("x.jpg", as_bytes("not read"));
  tar.add("x.txt", as_bytes("a cat"));
  tar.close();
  const Json raw = facts_of(folder / "raw");
  EXPECT_EQ(raw["kind"], "webdataset of raw media");
  EXPECT_EQ(raw["num_samples"], 1);
  EXPECT_EQ(raw["parts"][0]["part"], "jpg");
}

TEST(InspectSample, ShowsItsParts) {
  const test::TempFolder folder;
  test::write_small_dataset(folder / "data", 6, 3);
  const Json facts = facts_of(folder / "data", [](InspectOptions& o) { o.sample = "000004"; });
  EXPECT_EQ(facts["key"], "000004");
  EXPECT_EQ(facts["caption"], "caption 4");
  EXPECT_EQ(facts["latent"]["shape"], Json::array({16, 1, 4, 4}));
  EXPECT_EQ(facts["latent"]["dtype"], "bf16");
  EXPECT_EQ(facts["text"]["rows_used"], 5);
  EXPECT_EQ(facts["json"]["source"], "file 4");
  EXPECT_DFM_ERROR(ExitCode::kData, "did you mean '000004'",
                   report_of(folder / "data", [](InspectOptions& o) { o.sample = "00004"; }));
}

TEST(InspectDecode, WritesAContactSheetAndAClip) {
  const test::TempFolder folder;
  test::write_small_dataset(folder / "data", 4, 4);  // 0 and 3 are clips
  const fs::path sheet = folder.path() / "out" / "sheet.png", clip = folder.path() / "clip.mp4";
  const Json facts = facts_of(folder / "data", [&](InspectOptions& o) { o.decode = sheet; });
  EXPECT_EQ(facts["decoded"]["samples"].size(), 4u);
  // Clips are three frames wide: the widest, 48 pixels a frame, makes the tile.
  const at::Tensor picture = formats::read_image(sheet);
  EXPECT_GE(picture.size(1), 3 * 48);
  const Json one = facts_of(folder / "data", [&](InspectOptions& o) { o.decode = clip; });
  EXPECT_EQ(one["decoded"]["samples"], Json::array({"000000"}));
  EXPECT_EQ(one["decoded"]["frames"], 9);
  formats::VideoReader reader(clip);
  std::int64_t frames = 0;
  while (reader.next()) ++frames;
  EXPECT_EQ(frames, 9);
  EXPECT_NEAR(reader.info().fps, 12, 1e-6);
}

fs::path write_run(const fs::path& run) {
  namespace extra = checkpoint::extra;
  checkpoint::save_iteration(run, 7, -1, *comm::World::solo(), [](const fs::path& folder) {
    checkpoint::write_tensor_file(
        folder / extra::kWeightsFileName,
        {{"layers.0.w", at::zeros({2, 3})}, {"layers.1.w", at::zeros({2, 3})}, {"b", at::zeros({5}, at::kBFloat16)}});
    checkpoint::write_tensor_file(folder / extra::kOptimizerFileName, {});
    checkpoint::write_tensor_file(folder / extra::kFileName, {},
                                  {{extra::kIteration, std::int64_t{7}},
                                   {"model.num_layers", std::int64_t{2}},
                                   {extra::kDatasetCard, data::to_json({})}});
    write_file_atomically(folder / extra::kConfigFileName, "train:\n  train_iters: 40\nmixed_precision: fp32\n");
  });
  return run;
}

TEST(InspectCheckpoint, ShowsIterationsOptionsAndParameters) {
  const test::TempFolder folder;
  const fs::path run = write_run(folder / "run");
  fs::create_directory(run / "iter_0000009.tmp");
  const Json facts = facts_of(run);
  EXPECT_EQ(facts["kind"], "run");
  EXPECT_EQ(facts["iterations"][0]["status"], "complete") << facts.dump(2);
  EXPECT_EQ(facts["iterations"][1]["status"], "unfinished");
  const Json& newest = facts["newest"];
  EXPECT_EQ(newest["num_parameters"], 17);
  EXPECT_EQ(newest["parameters_by_dtype"]["bf16"], 5);
  EXPECT_EQ(newest["model"]["num_layers"], 2);
  EXPECT_EQ(newest["data_set"]["tokenizer"], "builtin");
  EXPECT_EQ(newest["config"]["train.train_iters"], 40);
  EXPECT_EQ(facts_of(run / "iter_0000007")["num_tensors"], 3);
  const std::string text = report_of(run).text;
  EXPECT_NE(text.find("layers.*.w"), std::string::npos) << text;
}

TEST(InspectCheckpoint, SaysWhatIsDamaged) {
  const test::TempFolder folder;
  const fs::path run = write_run(folder / "run");
  fs::resize_file(run / "iter_0000007" / checkpoint::extra::kWeightsFileName, 100);
  const Report report = report_of(run / "iter_0000007");
  EXPECT_EQ(report.code, ExitCode::kCheckpoint);
  EXPECT_NE(report.problem.find(checkpoint::extra::kWeightsFileName), std::string::npos) << report.problem;
  EXPECT_NE(report.text.find("damaged"), std::string::npos) << report.text;
}

TEST(InspectCheckpoint, TakesACardThatIsNoTextForDamaged) {
  namespace extra = checkpoint::extra;
  const test::TempFolder folder;
  const fs::path place = folder / "weights";
  fs::create_directory(place);
  checkpoint::write_tensor_file(place / extra::kFileName, {}, {{extra::kDatasetCard, std::int64_t{7}}});
  EXPECT_EQ(facts_of(place)["data_set"]["card"], "damaged");
}

TEST(InspectFile, ReadsSafetensorsAndTorchFiles) {
  const test::TempFolder folder;
  formats::write_safetensors(folder / "a.safetensors", {{"x", at::ones({4, 2})}, {"y", at::ones({3}, at::kLong)}});
  const Json safe = facts_of(folder / "a.safetensors");
  EXPECT_EQ(safe["format"], "safetensors");
  EXPECT_EQ(safe["num_parameters"], 11);
  EXPECT_EQ(safe["metadata"]["format"], "pt");

  write_file_atomically(folder / "b.pth", formats::torch_save_tensor(at::full({2, 2}, 3.0)));
  const Json torch = facts_of(folder / "b.pth");
  EXPECT_EQ(torch["content"]["mean"], 3.0);
  EXPECT_EQ(torch["num_parameters"], 4);

  checkpoint::write_tensor_file(folder / "c.pt", {{"w", at::zeros({2})}},
                                {{"step", std::int64_t{5}}, {"name", std::string("n")}});
  const Json mixed = facts_of(folder / "c.pt");
  EXPECT_EQ(mixed["values"]["step"], 5);
  EXPECT_EQ(mixed["values"]["name"], "n");
  EXPECT_EQ(mixed["tensors"][0]["name"], "w");
}

TEST(InspectFile, RefusesWhatItDoesNotKnow) {
  const test::TempFolder folder;
  write_file_atomically(folder / "a.txt", "hello");
  EXPECT_DFM_ERROR(ExitCode::kData, "a.txt: got a file that is no tar", report_of(folder / "a.txt"));
  EXPECT_DFM_ERROR(ExitCode::kData, "got no such file", report_of(folder / "none"));
  fs::create_directory(folder / "empty");
  EXPECT_DFM_ERROR(ExitCode::kData, "want one of them", report_of(folder / "empty"));
  write_file_atomically(folder / "cut.safetensors", std::string("\x40\0\0\0\0\0\0\0{\"a\"", 12));
  EXPECT_DFM_ERROR(ExitCode::kData, "cut.safetensors", report_of(folder / "cut.safetensors"));
}

TEST(Facts, BecomeAlignedText) {
  const Facts facts{{"path", "p"},
                    {"kind", "k"},
                    {"status", "s"},
                    {"num_things", 1234567},
                    {"bytes", 2048},
                    {"list", {1, 2.5}},
                    {"rows", {{{"a", "x"}, {"n", 1}}, {{"a", "long"}, {"n", 20}}}}};
  EXPECT_EQ(to_text(facts),
            "p: k, s\n"
            "  num things  1,234,567\n"
            "  bytes       " +
                format_bytes(2048) +
                "\n"
                "  list        1, 2.5\n"
                "  rows:\n"
                "    a      n\n"
                "    x      1\n"
                "    long  20\n");
}

}  // namespace
}  // namespace dfm::inspect
