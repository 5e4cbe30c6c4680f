#include "dfm/generate/generate.h"

#include "command_line.h"
#include "dfm/comm/launch.h"
#include "dfm/config/text.h"
#include "dfm/ops/device.h"
#include "foreign_flags.h"
#include "ranks.h"
#include "subcommands.h"

namespace dfm::cli {

int run_generate(const std::vector<std::string>& args) {
  generate::GenerateOptions options;
  const config::Tree tree = config::tree_of(options);
  CommandLine line("generate", args);
  line.options(tree, &generate_foreign_flags());
  line.parse();
  if (line.wants_help()) {
    generate::GenerateOptions defaults;
    fmt::print(
        "dfm generate: a prompt and a trained model -> an MP4, or a PNG for one frame\n\n"
        "  dfm generate --prompt TEXT [--checkpoint RUN_DIR] [--video-save-path out.mp4]\n\n"
        "The tokenizer and the text encoder are those that the checkpoint records: what its data set was made with.\n\n"
        "Examples:\n"
        "  dfm generate --checkpoint checkpoints/demo --prompt \"a large blue butterfly in the blue sky\" \\\n"
        "               --height 96 --width 96 --num-video-frames 9 --video-save-path butterfly.mp4\n"
        "  dfm generate --prompts-file prompts.txt --sampler dpmpp_2m --num-steps 18\n"
        "  dfm generate --prompt TEXT --checkpoint RUN --tokenizer ./Cosmos-0.1-Tokenizer-CV4x8x8 --text-encoder ./t5\n"
        "  dfm --nproc-per-node 4 generate --prompt TEXT --cp-size 2    # 2 ranks for each branch of guidance\n\n"
        "Flags:\n{}{}",
        config::flags_help(config::tree_of(defaults)), common_flags_help("generate"));
    return 0;
  }
  line.merge().check(tree, /*flags=*/true);
  line.merge().finish();
  const comm::Launch launch = comm::read_launch();
  generate::RunContext context;
  context.device = ops::select_device(line.device(), launch.local_rank);
  generate::fetch(options);
  context.world = join_world("generate", context.device,
                             {.distributed_backend = options.distributed_backend,
                              .distributed_timeout_minutes = options.distributed_timeout_minutes});
  const auto files = generate::run(options, context);
  for (const std::string& file : generate::report(files, *context.world)) fmt::print("{}\n", file);
  context.world->leave();
  return 0;
}

}  // namespace dfm::cli
