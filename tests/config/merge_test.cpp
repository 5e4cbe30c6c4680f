#include "dfm/config/merge.h"

#include <gtest/gtest.h>

#include "config/example_config.h"
#include "dfm/base/error.h"
#include "dfm/config/text.h"

namespace dfm::config::test {
namespace {

using Lines = std::vector<std::string>;

TEST(ConfigMerge, LaterPlacesWinAndEachValueKnowsItsOrigin) {
  ExampleConfig example;
  const Tree tree = tree_of(example);
  Merge merge;
  const Values before = list_values(tree);
  example.model.num_layers = 12;
  example.optimizer.lr = 1;
  merge.mark_changed(tree, before, "recipe small");
  merge.yaml(tree, "model:\n  hidden_size: 768\noptimizer: {lr: 0.5, betas: [0.9, 0.99], min_lr: 1e-6}\n", "a.yaml");
  merge.yaml(tree, "optimizer:\n  decay: none\n  lr: 0.25\n", "b.yaml");
  merge.override_value(tree, "++model.hidden_size=1024");
  merge.override_value(tree, "+path=/x y=z");
  merge.check(tree);
  merge.finish();
  EXPECT_EQ(example.model.num_layers, 12);
  EXPECT_EQ(example.model.hidden_size, 1024);
  EXPECT_EQ(example.optimizer.lr, 0.25);
  EXPECT_EQ(example.optimizer.min_lr, 1e-6);
  EXPECT_EQ(example.optimizer.betas, (std::vector<double>{0.9, 0.99}));
  EXPECT_EQ(example.optimizer.decay, Decay::kNone);
  EXPECT_EQ(example.path, "/x y=z");
  const Origins want{{"model.num_layers", "recipe small"},
                     {"model.hidden_size", "command line"},
                     {"optimizer.lr", "b.yaml:3:7"},
                     {"optimizer.betas", "a.yaml:3:29"},
                     {"optimizer.min_lr", "a.yaml:3:50"},
                     {"optimizer.decay", "b.yaml:2:10"},
                     {"path", "command line"}};
  EXPECT_EQ(merge.origins(), want);
}

TEST(ConfigMerge, ReportsAllErrorsAtOnceEachOnItsLine) {
  const std::string yaml =
      "model:\n"
      "  num_layer: 4\n"
      "  hidden_size: six\n"
      "  num_heads: -1\n"
      "optimizr:\n"
      "  lr: 1\n"
      "optimizer:\n"
      "  decay: cosin\n"
      "  lr: [1]\n"
      "  zzzzzzzzzz: 1\n"
      "seed: -3\n";
  const Lines want{
      "model.num_layer: got no such option, want one of the section's (my.yaml:2:3); hint: did you mean "
      "'model.num_layers'",
      "model.hidden_size: got 'six', want an integer (my.yaml:3:16)",
      "optimizr: got no such section, want one of model, optimizer (my.yaml:5:1); hint: did you mean 'optimizer'",
      "optimizer.decay: got 'cosin', want one of none, cosine (my.yaml:8:10)",
      "optimizer.lr: got a list, want a number (my.yaml:9:7)",
      "optimizer.zzzzzzzzzz: got no such option, want one of lr, min_lr, betas, decay, clip (my.yaml:10:3)",
      "seed: got '-3', want an integer >= 0 (my.yaml:11:7)",
      "optimizer.clip: got 'maybe', want true or false (command line)",
      "model.num_heads: got -1, want a value > 0 (my.yaml:4:14)",
  };
  EXPECT_EQ(errors_of(yaml, {"optimizer.clip=maybe"}), want);
}

TEST(ConfigMerge, FinishThrowsOneErrorThatHoldsAllLines) {
  Merge merge;
  merge.finish();
  merge.add_error("a");
  merge.add_error("b");
  try {
    merge.finish();
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "a\nb");
  }
}

TEST(ConfigMerge, RulesAcrossFieldsNameTheOptionAndItsOrigin) {
  EXPECT_EQ(errors_of("model:\n  num_heads: 7\n"),
            Lines{"model.num_heads: got 7, want a divisor of hidden_size (my.yaml:2:14); hint: try 16"});
  // A value that fails alone is not computed with: num_heads = 0 would divide by zero.
  EXPECT_EQ(errors_of("model: {num_heads: 0}"), Lines{"model.num_heads: got 0, want a value > 0 (my.yaml:1:20)"});
}

TEST(ConfigMerge, ALaterGoodValueRepairsAnEarlierBadOneOnlyInSilenceOfTheCheck) {
  // The bad value itself stays an error: it stands in a file that the user should mend.
  EXPECT_EQ(errors_of("model: {num_layers: six}", {"model.num_layers=6"}).size(), 1u);
  EXPECT_EQ(errors_of("model: {num_layers: -6}", {"model.num_layers=6"}).size(), 0u);
}

TEST(ConfigMerge, NearestNamesLookInOtherSectionsToo) {
  EXPECT_EQ(errors_of("", {"model.lr=1"}),
            Lines{"model.lr: got no such option, want one of the section's (command line); hint: did you mean "
                  "'optimizer.lr'"});
  EXPECT_EQ(errors_of("", {"num_layers=1"}),
            Lines{"num_layers: got no such option, want section.option, the section one of model, optimizer (command "
                  "line); hint: did you mean 'model.num_layers'"});
  EXPECT_EQ(errors_of("", {"optimiser.lr=1"}),
            Lines{"optimiser.lr: got no such option, want section.option, the section one of model, optimizer (command "
                  "line); hint: did you mean 'optimizer.lr'"});
}

TEST(ConfigMerge, OverridesNeedAnEqualsSign) {
  EXPECT_EQ(errors_of("", {"model.num_layers"}),
            Lines{"model.num_layers: got no value, want section.option=value (command line); hint: did you mean "
                  "'model.num_layers=...'"});
  EXPECT_EQ(errors_of("", {"=4", "+", "~model.num_layers", "model.num_layers=[1"}).size(), 4u);
}

TEST(ConfigMerge, SecondKeyIsAnErrorThatNamesTheFirst) {
  EXPECT_EQ(
      errors_of("model:\n  num_layers: 4\n  num_layers: 5\nmodel: null\n"),
      (Lines{"model.num_layers: got a second time, want once (my.yaml:3:3); hint: it stands at my.yaml:2:3 already",
             "model: got a second time, want once (my.yaml:4:1); hint: it stands at my.yaml:1:1 already"}));
}

TEST(ConfigMerge, DocumentsThatAreNoMapAreErrors) {
  EXPECT_EQ(errors_of("- 1\n"), Lines{"my.yaml: got a list, want a map of sections (my.yaml:1:1)"});
  EXPECT_EQ(errors_of("hello"), Lines{"my.yaml: got 'hello', want a map of sections (my.yaml:1:1)"});
  EXPECT_EQ(errors_of("model: 5\n"), Lines{"model: got '5', want a map of options (my.yaml:1:8)"});
  EXPECT_EQ(errors_of("model:\n  num_layers: {a: 1}\n"),
            Lines{"model.num_layers: got a map, want an integer (my.yaml:2:15)"});
  EXPECT_EQ(errors_of(""), Lines{});
  EXPECT_EQ(errors_of("# nothing\nmodel:\n"), Lines{});
}

TEST(ConfigMerge, DottedKeysAndNullsAreTaken) {
  EXPECT_EQ(errors_of("optimizer.min_lr: null\npath: null\noptimizer.decay: null\n"), Lines{});
  EXPECT_EQ(errors_of("model.num_layers: null\n"), Lines{"model.num_layers: got null, want an integer (my.yaml:1:19)"});
}

TEST(ConfigMerge, ReferencesAreRefusedWithAHint) {
  EXPECT_EQ(errors_of("path: ${oc.env:HOME}\n"),
            Lines{"path: got '${oc.env:HOME}', want a path (my.yaml:1:7); hint: references are not resolved, write the "
                  "value itself"});
}

TEST(ConfigMerge, ForeignNamesAreAcceptedWithOneWarning) {
  ExampleConfig example;
  const Tree tree = tree_of(example);
  Merge merge(&kForeign);
  merge.yaml(tree,
             "model:\n  _target_: a.B\n  qkv_format: thd\n  rotary_base: 3\n  rotary_percent: 1\n  fp16: False\n"
             "  sigma: .5\nddp:\n  overlap: {a: [1]}\noptimizer:\n  rate: 0.125\n",
             "my.yaml");
  merge.override_value(tree, "ddp.bucket_size=5");
  merge.check(tree);
  EXPECT_EQ(merge.errors(), Lines{});
  EXPECT_EQ(example.optimizer.lr, 0.125);
  EXPECT_EQ(
      merge.foreign_warning(),
      "options of Megatron-Bridge without effect here: model._target_ (Python); model.qkv_format (always packed); "
      "model.rotary_base, model.rotary_percent (no table); model.fp16 (no fp16); model.sigma (fixed); ddp, "
      "ddp.bucket_size (one rank)");
}

TEST(ConfigMerge, ForeignNamesThatAskForAnotherRunAreErrors) {
  EXPECT_EQ(errors_of("model: {fp16: true, sigma: 1}\n"),
            (Lines{"model.fp16: got 'true', want false or null: no fp16 (my.yaml:1:9)",
                   "model.sigma: got '1', want 0.5: fixed (my.yaml:1:21)"}));
}

TEST(ConfigYamlText, FullAndMinimalReadBack) {
  ExampleConfig example;
  example.model.num_layers = 3;
  example.optimizer.betas = {0.1, 0.2};
  example.note = "two\nlines";
  EXPECT_EQ(to_yaml(example, YamlStyle::kMinimal),
            "note: \"two\\nlines\"\nmodel:\n  num_layers: 3\noptimizer:\n  betas: [0.1, 0.2]\n");
  const ExampleConfig untouched;
  EXPECT_EQ(to_yaml(untouched, YamlStyle::kMinimal), "");
  EXPECT_EQ(
      to_yaml(example, YamlStyle::kFull),
      "path: null\nnote: \"two\\nlines\"\nseed: 1234\nmodel:\n  num_layers: 3\n  hidden_size: 1152\n  num_heads: 16\n"
      "optimizer:\n  lr: 9.0e-05\n  min_lr: null\n  betas: [0.1, 0.2]\n  decay: cosine\n  clip: true\n");
  for (const YamlStyle style : {YamlStyle::kFull, YamlStyle::kMinimal}) {
    ExampleConfig back;
    Origins origins;
    merge_yaml(back, origins, to_yaml(example, style), "x");
    EXPECT_EQ(list_values(back), list_values(example));
  }
}

TEST(ConfigYamlText, OriginsAreComments) {
  ExampleConfig example;
  const Origins origins{{"model.num_layers", "my.yaml:2:3"}};
  EXPECT_NE(
      to_yaml(example, YamlStyle::kFull, &origins).find("  num_layers: 28                          # my.yaml:2:3\n"),
      std::string::npos);
}

TEST(ConfigValidate, ThrowsEveryFailedCheck) {
  ExampleConfig example;
  validate(example);
  example.model.num_layers = 0;
  example.optimizer.lr = -1;
  try {
    validate(example, {{"optimizer.lr", "card"}});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(
        error.what(),
        "model.num_layers: got 0, want a value > 0 (default)\noptimizer.lr: got -1.0, want a value >= 0 (card)");
  }
}

TEST(ConfigText, HelpWrapsAndShowsDefaults) {
  ModelSection section;
  EXPECT_EQ(flags_help(tree_of(section)),
            "  --num-layers N            Layers [28]\n  --hidden-size N           Width [1152]\n"
            "  --num-heads N             Heads [16]\n");
  EXPECT_EQ(help_row("--a", "one two three", 8, 18), "  --a     one two\n          three\n");
  ExampleConfig example;
  const std::string help = sections_help(tree_of(example));
  EXPECT_NE(help.find("\nmodel: The model\n  model.num_layers=28"), std::string::npos) << help;
  EXPECT_NE(help.find("Decay (none|cosine)"), std::string::npos) << help;
}

TEST(ConfigText, MarkdownEscapesBars) {
  ExampleConfig example;
  EXPECT_NE(markdown(tree_of(example), false).find("Key of \\| everything"), std::string::npos);
}

}  // namespace
}  // namespace dfm::config::test
