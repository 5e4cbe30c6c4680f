#include "dfm/inspect/inspect.h"

#include "command_line.h"
#include "dfm/config/text.h"
#include "dfm/ops/device.h"
#include "subcommands.h"

namespace dfm::cli {

int run_inspect(const std::vector<std::string>& args) {
  inspect::InspectOptions options;
  const config::Tree tree = config::tree_of(options);
  CommandLine line("inspect", args);
  line.options(tree, nullptr);
  line.positionals(nullptr);
  line.parse();
  if (line.wants_help()) {
    inspect::InspectOptions defaults;
    fmt::print(
        "dfm inspect: what is in a data set, a sample, a checkpoint, a file of weights\n\n"
        "  dfm inspect PATH [--json] [--sample KEY] [--decode NAME.png|NAME.mp4]\n\n"
        "PATH: a data set of dfm prepare, DFM or energon prepare, one of its tars, a Metadataset's YAML; a run or\n"
        "iteration folder of dfm train; a folder of an encoder; a .pt, .pth, .bin, .safetensors, .jit or .pickle "
        "file.\n"
        "What is damaged is described as far as it goes, and the exit code is 3 (data) or 4 (checkpoint).\n\n"
        "Examples:\n"
        "  dfm inspect butterfly_webdataset                     counts, sizes, captions, latents, tokens, packing\n"
        "  dfm inspect butterfly_webdataset --sample 000042     one sample\n"
        "  dfm inspect butterfly_webdataset --decode sheet.png  16 samples, decoded\n"
        "  dfm inspect checkpoints/demo                         iterations, options, parameters\n"
        "  dfm inspect model.safetensors --json                 names, shapes, dtypes\n\n"
        "Flags:\n{}{}",
        config::flags_help(config::tree_of(defaults)), common_flags_help("inspect"));
    return 0;
  }
  if (line.rest().size() > 1 || (!line.rest().empty() && !options.path.empty())) {
    line.merge().add_error(fmt::format("'{}': got a second path, want one (command line)", line.rest().back()));
  } else if (!line.rest().empty()) {
    options.path = line.rest().front();
  }
  line.merge().check(tree, /*flags=*/true);
  line.merge().finish();
  const inspect::Report report = inspect::run(options, ops::select_device(line.device(), 0));
  fmt::print("{}", report.text);
  if (report.code != ExitCode::kOk) throw Error(report.code, report.problem);
  return 0;
}

}  // namespace dfm::cli
