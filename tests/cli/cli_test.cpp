// The command line as a user meets it: help, exit codes, and the exact lines of mistakes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "cli/run_dfm.h"

namespace dfm::test {
namespace {

namespace fs = std::filesystem;

std::string read_source_file(const char* name) {
  std::ifstream file(fs::path(DFM_SOURCE_DIR) / name);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A YAML file that lives as long as the test.
class TemporaryYaml {
 public:
  explicit TemporaryYaml(const std::string& text) : path_(fs::path(testing::TempDir()) / name()) {
    std::ofstream(path_) << text;
  }
  ~TemporaryYaml() { fs::remove(path_); }
  TemporaryYaml(const TemporaryYaml&) = delete;
  TemporaryYaml& operator=(const TemporaryYaml&) = delete;
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  static std::string name() {
    return std::string("dfm_cli_") + testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
  }
  fs::path path_;
};

void expect_error(const std::vector<std::string>& args, int exit_code, const std::string& lines) {
  const Finished finished = run_dfm(args);
  EXPECT_EQ(finished.exit_code, exit_code);
  EXPECT_EQ(finished.err, lines);
  EXPECT_EQ(finished.out, "");
}

TEST(CliHelp, TopLevelNamesTheSubcommands) {
  const Finished finished = run_dfm({"--help"});
  EXPECT_EQ(finished.exit_code, 0);
  EXPECT_EQ(finished.err, "");
  for (const char* name : {"dfm prepare", "dfm train", "dfm generate", "dfm inspect", "synthetic:butterflies"}) {
    EXPECT_NE(finished.out.find(name), std::string::npos) << name;
  }
  EXPECT_EQ(finished.out.find("config-docs"), std::string::npos);
  EXPECT_EQ(run_dfm({"help"}).out, finished.out);
}

TEST(CliHelp, SubcommandsListTheirOptions) {
  const Finished train = run_dfm({"train", "--help"});
  EXPECT_EQ(train.exit_code, 0);
  for (const char* text : {"--config-file", "--recipe", "demo:", "\nmodel: The DiT\n", "model.num_layers=28",
                           "optimizer.lr=9.0e-05", "Examples:", "--device"}) {
    EXPECT_NE(train.out.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(run_dfm({"help", "train"}).out, train.out);
  const Finished prepare = run_dfm({"prepare", "-h"});
  EXPECT_EQ(prepare.exit_code, 0);
  for (const char* text : {"--short-side N", "[121]", "--[no-]require-captions", "(required)"}) {
    EXPECT_NE(prepare.out.find(text), std::string::npos) << text;
  }
  const Finished generate = run_dfm({"generate", "--help"});
  EXPECT_EQ(generate.exit_code, 0);
  for (const char* text : {"--prompt TEXT", "--sampler edm_euler|dpmpp_2m", "--cp-size N", "--video-save-path PATH"}) {
    EXPECT_NE(generate.out.find(text), std::string::npos) << text;
  }
}

TEST(CliHelp, NoLineIsWiderThanATerminal) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"--help"},
                                               {"train", "--help"},
                                               {"prepare", "--help"},
                                               {"generate", "--help"},
                                               {"inspect", "--help"}}) {
    const std::string text = run_dfm(args).out;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      EXPECT_LE(end - at, 120u) << text.substr(at, end - at);
      at = end + 1;
    }
  }
}

TEST(CliVersion, IsOneLine) {
  const Finished finished = run_dfm({"--version"});
  EXPECT_EQ(finished.exit_code, 0);
  EXPECT_EQ(finished.out.substr(0, 4), "dfm ");
  EXPECT_EQ(std::count(finished.out.begin(), finished.out.end(), '\n'), 1);
}

TEST(CliSubcommand, UnknownOneNamesTheNearest) {
  expect_error(
      {"trian"}, 2,
      "dfm: error: trian: got no such subcommand, want one of prepare, train, generate, inspect; hint: did you mean "
      "'train'\n");
}

TEST(CliSubcommand, MissingOneShowsTheOverview) {
  const Finished finished = run_dfm({});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_NE(finished.err.find("dfm: error: subcommand: got none, want one of prepare, train, generate, inspect\n"),
            std::string::npos);
}

TEST(CliPrepare, ReportsAllMistakesAtOnce) {
  expect_error(
      {"prepare", "--shrt-side", "512", "--num_workers", "two", "--fps=-1", "--seed=-3"}, 2,
      "dfm prepare: error: --num-workers: got 'two', want an integer or null (command line)\n"
      "dfm prepare: error: --seed: got '-3', want an integer >= 0 (command line)\n"
      "dfm prepare: error: --shrt-side: got no such flag, want one of `dfm prepare --help` (command line); hint: "
      "did you mean '--short-side'\n"
      "dfm prepare: error: --output-dir: got no value, want one; hint: Folder for the webdataset; a stopped run "
      "there is continued\n"
      "dfm prepare: error: --fps: got -1.0, want a value > 0 (command line)\n");
}

TEST(CliPrepare, FlagWithoutItsValueIsAnError) {
  expect_error({"prepare", "--input", "a", "--output-dir", "b", "--short-side"}, 2,
               "dfm prepare: error: --short-side: got no value, want one (command line)\n");
}

TEST(CliPrepare, StrayArgumentIsAnError) {
  expect_error({"prepare", "--input", "a", "--output-dir", "b", "c"}, 2,
               "dfm prepare: error: 'c': got an argument without a flag, want --flag value (command line); hint: put "
               "quotes around a value that has blanks\n");
}

TEST(CliPrepare, MissingInputFolderIsADataError) {
  const Finished finished = run_dfm({"prepare", "--input", "/nonexistent/pictures", "--output-dir", "out",
                                     "--tokenizer", "builtin", "--text-encoder", "builtin"});
  EXPECT_EQ(finished.exit_code, 3) << finished.err;
  EXPECT_EQ(finished.err.substr(0, 20), "dfm prepare: error: ");
  EXPECT_NE(finished.err.find("/nonexistent/pictures"), std::string::npos) << finished.err;
}

TEST(CliTrain, ReportsMistakesOfFlagsFilesAndOverridesAtOnce) {
  const TemporaryYaml yaml("model:\n  num_layer: 6\ntrain:\n  train_iters: many\n");
  expect_error(
      {"train", "--config-file", yaml.path(), "--num-layers", "6", "optimizer.lr=fast", "model.hiden_size=4",
       "--device", "tpu"},
      2,
      "dfm train: error: --num-layers: got no such flag, want one of `dfm train --help` (command line); hint: did "
      "you mean 'model.num_layers=...'\n"
      "dfm train: error: --device: got 'tpu', want one of auto, cpu, cuda (command line)\n"
      "dfm train: error: model.num_layer: got no such option, want one of the section's (" +
          yaml.path() +
          ":2:3); hint: did you mean 'model.num_layers'\n"
          "dfm train: error: train.train_iters: got 'many', want an integer (" +
          yaml.path() +
          ":4:16)\n"
          "dfm train: error: optimizer.lr: got 'fast', want a number (command line)\n"
          "dfm train: error: model.hiden_size: got no such option, want one of the section's (command line); "
          "hint: did you mean 'model.hidden_size'\n");
}

TEST(CliTrain, NeedsADataSet) {
  expect_error({"train", "--recipe", "demo"}, 2,
               "dfm train: error: dataset.path: got no value, want the folder that `dfm prepare` wrote; hint: "
               "--dataset-path DIR\n");
}

TEST(CliTrain, MissingDataSetIsADataError) {
  const Finished finished = run_dfm({"train", "--recipe", "demo", "--dataset-path", "/nonexistent/data"});
  EXPECT_EQ(finished.exit_code, 3) << finished.err;
  EXPECT_NE(finished.err.find("dfm train: error: "), std::string::npos);
  EXPECT_NE(finished.err.find("/nonexistent/data"), std::string::npos) << finished.err;
}

TEST(CliTrain, MissingConfigFileAndSyntaxErrorsAreConfigErrors) {
  const Finished missing = run_dfm({"train", "--config-file", "/nonexistent/my.yaml"});
  EXPECT_EQ(missing.exit_code, 2);
  EXPECT_NE(missing.err.find("dfm train: error: --config-file: /nonexistent/my.yaml"), std::string::npos)
      << missing.err;
  const TemporaryYaml yaml("model: [1, 2\n");
  const Finished broken = run_dfm({"train", "--config-file", yaml.path()});
  EXPECT_EQ(broken.exit_code, 2);
  EXPECT_NE(broken.err.find(yaml.path() + ": got a syntax error ("), std::string::npos) << broken.err;
}

TEST(CliTrain, PrintConfigShowsTheMergedValuesAndTheirOrigins) {
  const Finished minimal = run_dfm({"--device", "cpu", "train", "--recipe", "dit_s", "--print-config", "minimal",
                                    "--dataset_path", "data", "model.num_layers=6"});
  EXPECT_EQ(minimal.exit_code, 0) << minimal.err;
  EXPECT_EQ(minimal.out,
            "model:\n"
            "  num_layers: 6                           # command line\n"
            "  hidden_size: 384                        # recipe dit_s\n"
            "  num_attention_heads: 6                  # recipe dit_s\n"
            "dataset:\n"
            "  path: data                              # command line\n");
  const Finished full = run_dfm({"train", "--print-config=full"});
  EXPECT_EQ(full.exit_code, 0);
  EXPECT_NE(full.out.find("\noptimizer:\n  lr: 9.0e-05\n"), std::string::npos) << full.out;
}

TEST(CliTrain, PrintedConfigIsAConfigFile) {
  const std::string printed = run_dfm({"train", "--recipe", "demo", "--print-config", "full"}).out;
  const TemporaryYaml yaml(printed);
  const Finished again = run_dfm({"train", "--config-file", yaml.path(), "--print-config", "minimal"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_NE(again.out.find("hidden_size: 192"), std::string::npos) << again.out;
}

TEST(CliTrain, TutorialsYamlGivesOneWarning) {
  const Finished finished =
      run_dfm({"train", "--config-file", std::string(DFM_SOURCE_DIR) + "/configs/dit_pretrain_example.yaml",
               "--print-config", "minimal"});
  EXPECT_EQ(finished.exit_code, 0);
  EXPECT_EQ(std::count(finished.err.begin(), finished.err.end(), '\n'), 1) << finished.err;
  EXPECT_NE(finished.err.find("model.qkv_format"), std::string::npos);
}

TEST(CliGenerate, SizesAreChecked) {
  const Finished finished = run_dfm({"generate", "--prompt", "x", "--height", "100", "--num_video_frames", "8"});
  EXPECT_EQ(finished.exit_code, 2);
  EXPECT_NE(finished.err.find("dfm generate: error: --height: got 100, want "), std::string::npos) << finished.err;
  EXPECT_NE(finished.err.find("dfm generate: error: --num-video-frames: got 8, want "), std::string::npos)
      << finished.err;
}

TEST(CliGenerate, MissingCheckpointIsACheckpointError) {
  const Finished finished = run_dfm({"generate", "--prompt", "x", "--checkpoint", "/nonexistent/run"});
  EXPECT_EQ(finished.exit_code, 4) << finished.err;
  EXPECT_NE(finished.err.find("/nonexistent/run"), std::string::npos) << finished.err;
}

TEST(CliGenerate, FlagsOfDfmsScriptAreTaken) {
  const Finished finished = run_dfm({"generate", "--prompt", "x", "--checkpoint_path", "/nonexistent/run",
                                     "--t5_cache_dir", "/t5", "--tokenizer_cache_dir", "/c", "--tokenizer_model",
                                     "builtin", "--guardrail_dir", "/g", "--video_save_path", "out.mp4"});
  EXPECT_EQ(finished.exit_code, 4) << finished.err;
  EXPECT_NE(finished.err.find("--guardrail-dir"), std::string::npos) << finished.err;
  for (const char* own : {"--t5-cache-dir", "--tokenizer-cache-dir", "--tokenizer-model"}) {
    EXPECT_EQ(finished.err.find(own), std::string::npos) << finished.err;
  }
}

TEST(CliGenerate, TextsOfFlagsAreTakenAsTheyStand) {
  // Each reaches the checkpoint: none is taken for a flag, a list or nothing.
  for (const std::string text : {"null", "[a, b]", "--large", "{x}", "a=b", "blau: größer", "-1"}) {
    const Finished finished =
        run_dfm({"generate", "--prompt", text, "--negative-prompt", "", "--checkpoint", "/nonexistent/run"});
    EXPECT_EQ(finished.exit_code, 4) << text << ": " << finished.err;
  }
}

TEST(CliPrepare, SwitchesHaveBothForms) {
  for (const char* form :
       {"--require-captions", "--no-require-captions", "--no_require_captions", "--require_captions"}) {
    const Finished finished = run_dfm({"prepare", form, "--input", "/nonexistent/pictures", "--output-dir", "out",
                                       "--tokenizer", "builtin", "--text-encoder", "builtin"});
    EXPECT_EQ(finished.exit_code, 3) << form << ": " << finished.err;
  }
}

TEST(CliGenerate, UnknownSamplerListsTheSamplers) {
  expect_error({"generate", "--prompt", "x", "--sampler", "euler"}, 2,
               "dfm generate: error: --sampler: got 'euler', want one of edm_euler, dpmpp_2m (command line)\n");
}

TEST(CliInspect, TakesOnePath) {
  expect_error({"inspect", "a", "b"}, 2, "dfm inspect: error: 'b': got a second path, want one (command line)\n");
  EXPECT_EQ(run_dfm({"inspect"}).exit_code, 2);
  EXPECT_EQ(
      run_dfm({"inspect", "/nonexistent/data"}).err,
      "dfm inspect: error: /nonexistent/data: got no such file or folder, want a data set, a checkpoint or a file "
      "of weights\n");
  const Finished decode = run_dfm({"inspect", "/nonexistent/data", "--decode", "a.gif"});
  EXPECT_EQ(decode.err, "dfm inspect: error: --decode: got a.gif, want NAME.png or NAME.mp4 (command line)\n");
}

TEST(CliConfigDocs, AreWhatDocsConfigMdHolds) {
  const Finished finished = run_dfm({"config-docs"});
  EXPECT_EQ(finished.exit_code, 0);
  EXPECT_EQ(finished.out, read_source_file("docs/config.md")) << "write it anew: dfm config-docs > docs/config.md";
}

}  // namespace
}  // namespace dfm::test
