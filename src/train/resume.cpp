#include "train/resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"
#include "dfm/checkpoint/extra_state.h"
#include "dfm/config/merge.h"
#include "dfm/config/tree.h"

namespace dfm::train {
namespace {

namespace fs = std::filesystem;
namespace extra = checkpoint::extra;

// Stored paths mean the same from wherever a run is continued.
fs::path normal_absolute(const fs::path& path) {
  if (path.empty()) return path;
  fs::path result = fs::absolute(path).lexically_normal();
  return result.has_filename() ? result : result.parent_path();
}

void make_paths_absolute(TrainConfig& config) {
  config.dataset.path = normal_absolute(config.dataset.path);
  config.dataset.blend = data::with_absolute_paths(config.dataset.blend);
  config.checkpoint.save = normal_absolute(config.checkpoint.save);
}

std::string origin_of(const RunContext& context, const std::string& option) {
  const auto found = context.explicit_options.find(option);
  return found == context.explicit_options.end() ? "" : found->second;
}

std::string in_brackets(const std::string& origin) { return origin.empty() ? "" : fmt::format(" ({})", origin); }

// Of dataset.path and dataset.blend, the one that was given takes the place of the one that was stored.
void settle_dataset(data::DatasetConfig& config, const RunContext& context) {
  if (config.path.empty() || config.blend.empty()) return;
  const bool is_path_given = !origin_of(context, "dataset.path").empty();
  const bool is_blend_given = !origin_of(context, "dataset.blend").empty();
  if (is_blend_given && !is_path_given) config.path.clear();
  if (is_path_given && !is_blend_given) config.blend.clear();
}

// One line a changed value: what is in the run's own configuration and differs in the one it goes on with.
std::vector<std::string> changed_values(TrainConfig stored, TrainConfig now, const RunContext& context) {
  // Where a run lies and what it started from are not what it computes.
  stored.checkpoint = {};
  now.checkpoint = {};
  make_paths_absolute(stored);
  make_paths_absolute(now);
  const config::Values before = config::list_values(stored);
  const config::Values after = config::list_values(now);
  std::vector<std::string> lines;
  for (std::size_t i = 0; i < std::min(before.size(), after.size()); ++i) {
    if (before[i].second == after[i].second) continue;
    lines.push_back(fmt::format("  {}: {} -> {}{}", before[i].first, before[i].second, after[i].second,
                                in_brackets(origin_of(context, before[i].first))));
  }
  return lines;
}

// A folder that is neither empty nor a run's is left alone.
void check_is_run_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) return;
  if (!fs::is_directory(folder, error))
    throw ConfigError("checkpoint.save {}: got a file, want a folder", folder.string());
  std::string first;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == "metrics.jsonl" || name == "run.lock" || name.starts_with("iter_") || name == "tb_logs") return;
    if (first.empty() || name < first) first = name;
  }
  if (!first.empty()) {
    throw ConfigError(
        "checkpoint.save {}: got a folder that holds other things ({}, ...), want an empty or new one, or a run folder",
        folder.string(), first);
  }
}

// The iteration to go on from, if any; `said` tells why.
std::optional<checkpoint::IterationFolder> find_source(const TrainConfig& config, const RunContext& context,
                                                       std::string& said, std::vector<std::string>& lines) {
  const fs::path& load = config.checkpoint.load;
  if (!load.empty()) {
    said = "checkpoint.load";
    const checkpoint::IterationFolder found = checkpoint::resolve_iteration(load);
    checkpoint::verify_iteration(found.path);
    return found;
  }
  std::string newest;  // the first rank's view of the file system decides for all
  context.world->on_first([&] {
    check_is_run_folder(config.checkpoint.save);
    const auto complete = checkpoint::complete_iterations(config.checkpoint.save);
    if (!complete.empty()) newest = checkpoint::iteration_name(complete.back().iteration);
  });
  newest = context.world->gather_text(newest).at(0);
  if (newest.empty()) return std::nullopt;
  if (!config.checkpoint.resume) {
    throw ConfigError(
        "checkpoint.save {}: got a run folder that holds {}, want one without checkpoints (checkpoint.resume=false{}); "
        "hint: choose another checkpoint.save, or leave checkpoint.resume away to continue",
        config.checkpoint.save.string(), newest, in_brackets(origin_of(context, "checkpoint.resume")));
  }
  said = "found in checkpoint.save; checkpoint.resume=false refuses";
  checkpoint::WholeIteration whole = checkpoint::newest_whole_iteration(config.checkpoint.save, *context.world);
  for (const std::string& line : whole.refused) lines.push_back(fmt::format("Not used: {}", line));
  return whole.found;
}

// Two histories in one run folder would be taken for one.
void check_does_not_fork(const checkpoint::IterationFolder& from, const fs::path& save) {
  const auto complete = checkpoint::complete_iterations(save);
  if (complete.empty()) {
    check_is_run_folder(save);
    return;
  }
  const bool is_same_run = normal_absolute(from.path.parent_path()) == normal_absolute(save);
  if (is_same_run && complete.back().iteration == from.iteration) return;
  throw ConfigError(
      "checkpoint.load {}: got an iteration that is not the newest of checkpoint.save {} ({}), want a run of its own; "
      "hint: choose another checkpoint.save{}",
      from.path.string(), save.string(), checkpoint::iteration_name(complete.back().iteration),
      is_same_run ? "" : ", or leave checkpoint.load away to continue the run in it");
}

std::int64_t integer(const checkpoint::Scalars& scalars, const std::string& name, const std::string& where) {
  const auto found = scalars.find(name);
  if (found == scalars.end()) throw CheckpointError("{}: got no '{}', want an integer", where, name);
  const auto* value = std::get_if<std::int64_t>(&found->second);
  if (value == nullptr) throw CheckpointError("{}: got '{}' of another type, want an integer", where, name);
  return *value;
}

std::string text(const checkpoint::Scalars& scalars, const std::string& name, const std::string& where) {
  const auto found = scalars.find(name);
  if (found == scalars.end()) throw CheckpointError("{}: got no '{}', want a string", where, name);
  const auto* value = std::get_if<std::string>(&found->second);
  if (value == nullptr) throw CheckpointError("{}: got '{}' of another type, want a string", where, name);
  return *value;
}

struct ShapeOption {
  const char* name;
  std::int64_t models::DitConfig::*member;
};
constexpr std::array kShape = {
    ShapeOption{"num_layers", &models::DitConfig::num_layers},
    ShapeOption{"hidden_size", &models::DitConfig::hidden_size},
    ShapeOption{"num_attention_heads", &models::DitConfig::num_attention_heads},
    ShapeOption{"crossattn_emb_size", &models::DitConfig::crossattn_emb_size},
    ShapeOption{"in_channels", &models::DitConfig::in_channels},
    ShapeOption{"patch_spatial", &models::DitConfig::patch_spatial},
    ShapeOption{"patch_temporal", &models::DitConfig::patch_temporal},
};

using LayoutOption = std::int64_t models::DitConfig::*;
constexpr std::array kLayout = {
    &models::DitConfig::tensor_model_parallel_size,
    &models::DitConfig::pipeline_model_parallel_size,
    &models::DitConfig::context_parallel_size,
};

}  // namespace

ResumePlan plan_resume(const TrainConfig& config, const RunContext& context) {
  ResumePlan plan;
  plan.config = config;
  std::string said;
  plan.from = find_source(config, context, said, plan.lines);
  if (!plan.from) {
    settle_dataset(plan.config.dataset, context);
    make_paths_absolute(plan.config);
    return plan;
  }
  const fs::path stored_path = plan.from->path / extra::kConfigFileName;
  TrainConfig stored = config;
  if (fs::exists(stored_path)) {
    const std::string yaml = read_text_file(stored_path);
    config::Origins origins;
    stored = {};
    config::merge_yaml(stored, origins, yaml, stored_path.string());
    if (context.over_stored) plan.config = context.over_stored(yaml, stored_path.string());
  }
  settle_dataset(plan.config.dataset, context);
  // These say how this run starts and how it is spread, not what it computes: never from the stored configuration.
  plan.config.checkpoint.load = config.checkpoint.load;
  plan.config.checkpoint.resume = config.checkpoint.resume;
  plan.config.checkpoint.pretrained_checkpoint.clear();
  plan.config.dataset.allow_change = config.dataset.allow_change;
  plan.config.ddp = config.ddp;
  plan.config.dist = config.dist;
  for (const LayoutOption& option : kLayout) plan.config.model.*option = config.model.*option;
  plan.config.model.sequence_parallel = config.model.sequence_parallel;
  plan.config.model.cp_comm_type = config.model.cp_comm_type;
  const bool is_save_given = !origin_of(context, "checkpoint.save").empty();
  plan.config.checkpoint.save =
      is_save_given || config.checkpoint.load.empty() ? config.checkpoint.save : plan.from->path.parent_path();
  if (!config.checkpoint.load.empty()) check_does_not_fork(*plan.from, plan.config.checkpoint.save);

  plan.lines.push_back(fmt::format("Continuing from {} ({})", plan.from->path.string(), said));
  if (!config.checkpoint.pretrained_checkpoint.empty())
    plan.lines.push_back("  checkpoint.pretrained_checkpoint: not used, the run has weights of its own");
  std::vector<std::string> changes = changed_values(stored, plan.config, context);
  if (!changes.empty()) plan.lines.push_back("Changed from the run's own configuration:");
  plan.lines.insert(plan.lines.end(), changes.begin(), changes.end());
  make_paths_absolute(plan.config);
  plan.from->path = normal_absolute(plan.from->path);
  return plan;
}

checkpoint::Scalars to_scalars(const ExtraState& state) {
  checkpoint::Scalars scalars;
  scalars[extra::kIteration] = state.iteration;
  scalars[extra::kConsumedSamples] = state.consumed_samples;
  scalars[extra::kSeed] = static_cast<std::int64_t>(state.seed);
  scalars[extra::kDatasetNumSamples] = state.dataset_num_samples;
  scalars[extra::kDatasetFingerprint] = fmt::format("{:016x}", state.dataset_fingerprint);
  scalars[extra::kDatasetCard] = state.dataset_card;
  scalars[extra::kMixedPrecision] = std::string(config::enum_name(state.precision));
  scalars[extra::kVersion] = std::string(DFM_VERSION);
  for (const ShapeOption& option : kShape)
    scalars[std::string(extra::kModelPrefix) + option.name] = state.model.*option.member;
  return scalars;
}

ExtraState extra_state_from(const checkpoint::Scalars& scalars, const std::string& where) {
  ExtraState state;
  state.iteration = integer(scalars, extra::kIteration, where);
  state.consumed_samples = integer(scalars, extra::kConsumedSamples, where);
  if (state.iteration < 0 || state.consumed_samples < 0)
    throw CheckpointError("{}: got iteration {} and {} consumed samples, want none negative", where, state.iteration,
                          state.consumed_samples);
  state.seed = static_cast<std::uint64_t>(integer(scalars, extra::kSeed, where));
  state.dataset_num_samples = integer(scalars, extra::kDatasetNumSamples, where);
  const std::string digits = text(scalars, extra::kDatasetFingerprint, where);
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), state.dataset_fingerprint, 16);
  if (error != std::errc() || end != digits.data() + digits.size())
    throw CheckpointError("{}: got {} '{}', want hexadecimal digits", where, extra::kDatasetFingerprint, digits);
  state.dataset_card = text(scalars, extra::kDatasetCard, where);
  for (const ShapeOption& option : kShape)
    state.model.*option.member = integer(scalars, std::string(extra::kModelPrefix) + option.name, where);
  return state;
}

void check_same_run(const ExtraState& stored, const TrainConfig& config, const data::Dataset& dataset,
                    const RunContext& context, const fs::path& from) {
  const auto hint = [](const std::string& option, const std::string& value) {
    return fmt::format(
        "hint: {}={} continues the run; to start another one from its weights, give them as "
        "checkpoint.pretrained_checkpoint and choose a new checkpoint.save",
        option, value);
  };
  const std::string conflict =
      encoder_conflict(dataset.card(), data::card_from_json(stored.dataset_card, from.string() + " (dataset_card)"));
  if (!conflict.empty()) {
    const std::string line =
        fmt::format("data set {}: got {} in {}", dataset.folder().string(), conflict, from.string());
    if (!config.dataset.allow_change) {
      throw DataError("{}; hint: prepare the data with the encoders of the run, or dataset.allow_change=true", line);
    }
    log::warning("train", "{} (dataset.allow_change=true)", line);
  }
  const auto num_samples = static_cast<std::int64_t>(dataset.entries().size());
  if ((num_samples != stored.dataset_num_samples || dataset.fingerprint() != stored.dataset_fingerprint) &&
      !config.dataset.allow_change) {
    throw DataError(
        "data set {}: got {} samples with fingerprint {:016x}, want {} samples with {:016x} as in {}; hint: "
        "dataset.allow_change=true goes on with the changed data",
        dataset.folder().string(), num_samples, dataset.fingerprint(), stored.dataset_num_samples,
        stored.dataset_fingerprint, from.string());
  }
  for (const ShapeOption& option : kShape) {
    const std::int64_t got = config.model.*option.member, want = stored.model.*option.member;
    if (got == want) continue;
    const std::string name = std::string("model.") + option.name;
    throw ConfigError("{}: got {}{}, want {} as in {}; {}", name, got, in_brackets(origin_of(context, name)), want,
                      from.string(), hint(name, std::to_string(want)));
  }
  if (config.rng.seed != stored.seed) {
    throw ConfigError("rng.seed: got {}{}, want {} as in {}; {}", config.rng.seed,
                      in_brackets(origin_of(context, "rng.seed")), stored.seed, from.string(),
                      hint("rng.seed", std::to_string(stored.seed)));
  }
}

void follow_dataset(models::DitConfig& model, const data::DatasetCard& card, const fs::path& folder,
                    const RunContext& context) {
  const auto follow = [&](const std::string& name, std::int64_t& value, std::int64_t of_dataset, const char* what) {
    if (value == of_dataset) return;
    const std::string origin = origin_of(context, name);
    if (!origin.empty()) {
      throw ConfigError(
          "{}: got {} ({}), want {}, {} of the data set {}; hint: leave the option away, it follows the "
          "data set",
          name, value, origin, of_dataset, what, folder.string());
    }
    value = of_dataset;
  };
  follow("model.crossattn_emb_size", model.crossattn_emb_size, card.text_width, "the text width");
  follow("model.in_channels", model.in_channels, card.latent_channels, "the latent channels");
}

}  // namespace dfm::train
