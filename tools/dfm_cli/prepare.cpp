#include "dfm/prepare/prepare.h"

#include "command_line.h"
#include "dfm/comm/launch.h"
#include "dfm/config/text.h"
#include "dfm/ops/device.h"
#include "foreign_flags.h"
#include "ranks.h"
#include "subcommands.h"

namespace dfm::cli {

int run_prepare(const std::vector<std::string>& args) {
  prepare::PrepareOptions options;
  const config::Tree tree = config::tree_of(options);
  CommandLine line("prepare", args);
  line.options(tree, &prepare_foreign_flags());
  line.parse();
  if (line.wants_help()) {
    prepare::PrepareOptions defaults;
    fmt::print(
        "dfm prepare: pictures and clips with captions -> a webdataset of latents and text embeddings\n\n"
        "  dfm prepare --output-dir DATA                     the tutorial: butterflies, Cosmos tokenizer, T5-11B\n"
        "  dfm prepare --input FOLDER --output-dir DATA      your own pictures and clips\n\n"
        "A caption stands beside its file (cat.mp4 and cat.txt) or in metadata.jsonl / .csv. What is not in the hub's\n"
        "cache is downloaded first. The same command again continues a run that was stopped.\n\n"
        "Examples:\n"
        "  dfm prepare --input synthetic:butterflies:1600 --output-dir out\n"
        "  dfm prepare --input my_clips --output-dir out --text-encoder google-t5/t5-small\n"
        "  dfm prepare --input org/pictures --image-column image --caption-column text --output-dir out\n"
        "  dfm prepare --input my_clips --output-dir out --tokenizer builtin --text-encoder builtin --short-side "
        "256\n"
        "  torchrun --no-python --nproc-per-node 4 dfm prepare --output-dir out\n\n"
        "The last but one needs no download: a trial set, not for real training.\n\n"
        "Flags:\n{}{}",
        config::flags_help(config::tree_of(defaults)), common_flags_help("prepare"));
    return 0;
  }
  line.merge().check(tree, /*flags=*/true);
  line.merge().finish();
  prepare::RunContext context;
  context.device = ops::select_device(line.device(), comm::read_launch().local_rank);
  context.watch_signals = true;
  prepare::fetch(options);
  context.world = join_world("prepare", context.device, {});
  const prepare::Report report = prepare::run(options, context);
  if (context.world->is_first()) fmt::print("{}", prepare::describe(report));
  context.world->leave();
  return report.stopped_by == 0 ? 0 : 128 + report.stopped_by;
}

}  // namespace dfm::cli
