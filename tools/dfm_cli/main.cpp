// `dfm SUBCOMMAND ...`: dispatch, and the one place where errors become lines and exit codes.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/progress.h"
#include "dfm/comm/failure.h"
#include "dfm/comm/supervisor.h"
#include "dfm/config/merge.h"
#include "ranks.h"
#include "subcommands.h"

namespace dfm::cli {
namespace {

struct Subcommand {
  const char* name;
  const char* summary;  // nullptr: not shown
  int (*run)(const std::vector<std::string>& args);
};
constexpr std::array kSubcommands{
    Subcommand{"prepare", "pictures and clips -> a webdataset of latents and text embeddings", run_prepare},
    Subcommand{"train", "a webdataset -> a trained video diffusion transformer", run_train},
    Subcommand{"generate", "a prompt and a trained model -> an MP4", run_generate},
    Subcommand{"inspect", "what is in a data set, a sample, a checkpoint, a file of weights", run_inspect},
    Subcommand{"config-docs", nullptr, run_config_docs},
};

std::string overview() {
  std::string text = "dfm: from pictures and clips to a trained video diffusion transformer and an MP4\n\n";
  for (const Subcommand& subcommand : kSubcommands) {
    if (subcommand.summary != nullptr) text += fmt::format("  dfm {:<10}{}\n", subcommand.name, subcommand.summary);
  }
  return text +
         "\nDFM's tutorial, with NVIDIA's tokenizer and Google's T5 (downloaded when they are needed):\n"
         "  dfm prepare --output-dir butterfly_webdataset\n"
         "  dfm train --dataset-path butterfly_webdataset\n"
         "  dfm generate --checkpoint checkpoints/dit_butterfly --prompt \"a blue morpho butterfly\"\n"
         "\nA first tour, on any machine, without a download:\n"
         "  dfm prepare --input synthetic:butterflies:400 --output-dir butterflies\n"
         "  dfm inspect butterflies --decode sheet.png\n"
         "  dfm train --recipe demo --dataset-path butterflies\n"
         "  dfm generate --checkpoint checkpoints/demo --prompt \"a large blue butterfly in the blue sky\" \\\n"
         "               --height 96 --width 96 --num-video-frames 9 --video-save-path butterfly.mp4\n"
         "\nSeveral GPUs, or several CPU processes, are one rank each, and each subcommand runs on them:\n"
         "  dfm --nproc-per-node 4 train ...                              four ranks on this machine\n"
         "  torchrun --no-python --nproc-per-node 4 dfm train ...         the same; mpirun and srun do as well,\n"
         "                                                                on one machine or many\n"
         "\n`dfm SUBCOMMAND --help` lists the options, `dfm --version` the version.\n"
         "Exit codes: 2 options, 3 data, 4 checkpoint, 5 communication, 6 memory or disk, 70 a fault of dfm's own.\n";
}

int fail(const std::string& subcommand, ExitCode code, const std::string& lines) {
  Progress::clear_line();
  std::fflush(stdout);
  const std::string prefix = subcommand.empty() ? "dfm" : "dfm " + subcommand;
  for (std::size_t at = 0; at <= lines.size();) {
    const std::size_t end = std::min(lines.find('\n', at), lines.size());
    fmt::print(stderr, "{}: error: {}\n", prefix, lines.substr(at, end - at));
    at = end + 1;
  }
  return static_cast<int>(code);
}

// Of all ranks one prints, and all end with the first cause's code.
int fail_job(const std::string& subcommand, ExitCode code, const std::string& lines) {
  comm::Launch launch;
  try {
    launch = comm::read_launch();
  } catch (const Error&) {  // which is what is being reported: nobody can be reached
  }
  const comm::Claim claim = comm::claim_failure(launch, code, lines);
  if (claim.is_first) fail(subcommand, code, claim.label + lines);
  if (launch.world_size > 1) comm::end_failed(launch, claim.cause);
  return static_cast<int>(code);
}

// "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: ..." -> "DefaultCPUAllocator: ..."
std::string without_enforce_prefix(const std::string& text) {
  const std::size_t end = text.starts_with("[enforce fail") ? text.find(". ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

int run_guarded(const std::string& subcommand, const std::vector<std::string>& args, const std::function<int()>& run) {
  const bool is_verbose =
      std::any_of(args.begin(), args.end(), [](const std::string& a) { return a == "--verbose" || a == "-v"; });
  try {
    return run();
  } catch (const Error& error) {
    return fail_job(subcommand, error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail_job(
        subcommand, ExitCode::kResource,
        "memory: got no more from the system, want enough for this run; hint: smaller sizes, fewer workers");
  } catch (const c10::Error& error) {
    const std::string text = is_verbose ? error.what() : first_line(error.what_without_backtrace());
    const bool is_memory = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
                           text.find("can't allocate memory") != std::string::npos;
    return fail_job(
        subcommand, is_memory ? ExitCode::kResource : ExitCode::kInternal,
        is_memory ? fmt::format(
                        "memory: got none left ({}), want enough for this run; hint: smaller sizes{}",
                        without_enforce_prefix(text),
                        subcommand == "train" ? ", or train.micro_batch_size and model.recompute_granularity=full" : "")
                  : "LibTorch: " + text);
  } catch (const std::filesystem::filesystem_error& error) {
    return fail_job(subcommand, ExitCode::kData, first_line(error.what()));
  } catch (const std::exception& error) {
    return fail_job(subcommand, ExitCode::kInternal, std::string("internal: ") + first_line(error.what()));
  }
}

bool asks_for_help(const std::vector<std::string>& args) {
  return std::any_of(args.begin(), args.end(), [](const std::string& a) { return a == "--help" || a == "-h"; });
}

int run_subcommand(const Subcommand& subcommand, const std::vector<std::string>& args, const RanksFlag& ranks) {
  if (!ranks.is_given) return run_guarded(subcommand.name, args, [&] { return subcommand.run(args); });
  const int num_ranks = asks_for_help(args) ? 1 : checked_num_ranks(ranks.value);  // dispatch() has checked it
  if (num_ranks == 1) return run_guarded(subcommand.name, args, [&] { return subcommand.run(args); });
  std::vector<std::string> own = args;
  own.insert(own.begin(), subcommand.name);
  return run_guarded("", args, [&] { return comm::supervise(num_ranks, own); });
}

// `dfm -np 2 train`: what was taken for a subcommand is most likely the value of a flag that is none of ours.
bool is_foreign_leading_flag(const std::string& flag) {
  constexpr std::array kKnown{"--verbose", "-v", "--help", "-h"};
  return std::find(kKnown.begin(), kKnown.end(), flag) == kKnown.end() && flag.find('=') == std::string::npos;
}

std::string leading_flag_error(const std::string& flag) {
  const bool means_ranks = flag.starts_with("-n") || flag.starts_with("--np") || flag.starts_with("--nn");
  return fmt::format(
      "{}: got no such flag before the subcommand, want one of --nproc-per-node N, --device NAME, --verbose (command "
      "line); hint: {}",
      flag,
      means_ranks ? "dfm --nproc-per-node N starts N ranks on this machine" : "other flags follow the subcommand");
}

int dispatch(std::vector<std::string> args) {
  const RanksFlag ranks = take_ranks_flag(args);
  if (ranks.is_given && !asks_for_help(args)) {
    const int code = run_guarded("", args, [&] { return static_cast<void>(checked_num_ranks(ranks.value)), 0; });
    if (code != 0) return code;
  }
  // Flags before the subcommand belong to it: dfm --device cpu train.
  std::size_t first = 0;
  while (first < args.size() && args[first].starts_with('-')) first += args[first] == "--device" ? 2 : 1;
  const std::vector<std::string> leading(args.begin(),
                                         args.begin() + static_cast<std::ptrdiff_t>(std::min(first, args.size())));
  const auto has = [&](const char* a, const char* b) {
    return std::find(leading.begin(), leading.end(), a) != leading.end() ||
           std::find(leading.begin(), leading.end(), b) != leading.end();
  };
  if (has("--version", "-V")) {
    fmt::print("dfm {} (LibTorch {})\n", DFM_VERSION, DFM_TORCH_VERSION);
    return 0;
  }
  if (first < args.size() && args[first] == "help") {
    args.erase(args.begin() + static_cast<std::ptrdiff_t>(first));
    args.emplace_back("--help");
    if (args[first] == "--help") first = args.size();
  }
  if (first >= args.size()) {
    const bool is_asked = args.empty() ? false : has("--help", "-h") || args.back() == "--help";
    if (is_asked) {
      fmt::print("{}", overview());
      return 0;
    }
    fmt::print(stderr, "{}\n", overview());
    return fail("", ExitCode::kConfig, "subcommand: got none, want one of prepare, train, generate, inspect");
  }
  std::vector<std::string> names;
  std::string list;
  for (const Subcommand& subcommand : kSubcommands) {
    if (args[first] == subcommand.name) {
      std::vector<std::string> own(args.begin() + static_cast<std::ptrdiff_t>(first) + 1, args.end());
      own.insert(own.begin(), leading.begin(), leading.end());
      return run_subcommand(subcommand, own, ranks);
    }
    if (subcommand.summary == nullptr) continue;
    names.emplace_back(subcommand.name);
    list += (list.empty() ? "" : ", ") + std::string(subcommand.name);
  }
  if (!leading.empty() && leading.back().starts_with("-") && is_foreign_leading_flag(leading.back())) {
    return fail("", ExitCode::kConfig, leading_flag_error(leading.back()));
  }
  return fail(
      "", ExitCode::kConfig,
      config::unknown_name_error(args[first], "subcommand", "one of " + list, "", nearest_name(args[first], names)));
}

}  // namespace
}  // namespace dfm::cli

int main(int argc, char** argv) { return dfm::cli::dispatch(std::vector<std::string>(argv + 1, argv + argc)); }
