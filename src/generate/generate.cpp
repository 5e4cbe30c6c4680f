#include "dfm/generate/generate.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <tuple>
#include <type_traits>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"
#include "dfm/base/progress.h"
#include "generate/decode.h"
#include "generate/denoiser.h"
#include "generate/model.h"
#include "generate/teams.h"
#include "generate/weights.h"

namespace dfm::generate {
namespace {

constexpr double kDefaultFps = 24;  // of the file, where the data set does not say
constexpr double kUnknownFps = 30;  // what the model was told in training of samples without fps: pictures, old files

void require_valid(const GenerateOptions& options) {
  config::Problems problems;
  options.check(problems);
  if (problems.empty()) return;
  const config::Problem& first = problems.front();
  throw ConfigError("{}: got {}, want {}{}{}", first.option, first.got, first.want,
                    first.hint.empty() ? "" : "; hint: ", first.hint);
}

std::vector<std::string> read_prompts(const GenerateOptions& options) {
  if (options.prompts_file.empty()) return {options.prompt};
  std::vector<std::string> prompts;
  std::istringstream lines(read_text_file(options.prompts_file));
  for (std::string line; std::getline(lines, line);) {
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) continue;
    prompts.push_back(line.substr(first, line.find_last_not_of(" \t\r") - first + 1));
  }
  if (prompts.empty()) throw DataError("{}: got no prompt, want one a line", options.prompts_file.string());
  return prompts;
}

std::filesystem::path output_path(const GenerateOptions& options, std::size_t index, int rank) {
  const std::filesystem::path& asked = options.video_save_path;
  return asked.parent_path() / fmt::format("idx={}_rank={}_{}{}", index, rank, asked.stem().string(),
                                           options.num_video_frames == 1 ? ".png" : ".mp4");
}

// The ranks that make a prompt together, as this rank sees them.
struct Groups {
  comm::GroupPtr context, branches;

  Groups(const Place& place, comm::World& world)
      : context(world.group("context", place.context_ranks)), branches(world.group("guidance", place.branch_ranks)) {}
  // The first rank of the team decodes and writes.
  [[nodiscard]] bool is_writer() const { return context->rank() == 0 && branches->rank() == 0; }
};

// Makes clips on the ranks of a team.
class Generator {
 public:
  // `tokenizer`: only of the team's writer. `texts`: of the prompts, then the negative prompt, if there is one.
  Generator(const GenerateOptions& options, const RunContext& context, const Groups& groups, const StoredModel& stored,
            std::shared_ptr<models::VideoTokenizer> tokenizer, const models::LatentShape& shape,
            std::vector<at::Tensor> texts)
      : options_(options),
        groups_(groups),
        stored_(stored),
        shape_(shape),
        tokenizer_(std::move(tokenizer)),
        latent_scale_(stored.encoders.card),
        dit_(load_dit(stored, options, context.device, groups.context)),
        texts_(std::move(texts)) {
    negative_text_ = options.negative_prompt.empty() ? at::zeros({0, stored.config.crossattn_emb_size}) : texts_.back();
  }

  using OnStep = std::function<void(std::int64_t step)>;
  // What was made; nothing on ranks that only compute. `rank` is for the file's name.
  [[nodiscard]] std::optional<GeneratedFile> make(std::size_t index, const std::string& prompt, int rank,
                                                  const OnStep& on_step) const {
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor latent_CTHW = sample(index, on_step);
    if (!groups_.is_writer()) return std::nullopt;
    GeneratedFile file{.index = index,
                       .path = output_path(options_, index, rank),
                       .prompt = prompt,
                       .fps = options_.fps.value_or(card_fps() > 0 ? card_fps() : kDefaultFps)};
    const DecodedVideo video = decode_to_file(*tokenizer_, raw_latent(latent_CTHW, latent_scale_), file.path, file.fps);
    file.height = video.height;
    file.width = video.width;
    file.frames = video.frames;
    file.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return file;
  }

 private:
  [[nodiscard]] double card_fps() const { return stored_.encoders.card.fps; }  // 0: unknown

  [[nodiscard]] at::Tensor sample(std::size_t index, const OnStep& on_step) const {
    const double model_fps = card_fps() > 0 && options_.num_video_frames > 1 ? card_fps() : kUnknownFps;
    const Clip clip{.shape = shape_,
                    .text_LE = texts_.at(index),
                    .negative_text_LE = negative_text_,
                    .fps = options_.fps.value_or(model_fps),
                    .guidance = options_.guidance,
                    .seed = options_.seed,
                    .index = index};
    const auto after_step = [&](std::int64_t step, std::int64_t num_steps, const at::Tensor& x_SC) {
      if (!at::isfinite(x_SC).all().item<bool>()) {
        throw DataError(
            "latents of prompt {}: got values that are not finite after step {} of {}, want finite ones; "
            "hint: the weights may be damaged ({})",
            index, step + 1, num_steps, stored_.weights.string());
      }
      on_step(step);
    };
    return sample_clip(*dit_, clip, groups_.branches,
                       {.sampler = options_.sampler, .num_steps = options_.num_steps, .on_step = after_step});
  }

  const GenerateOptions& options_;
  Groups groups_;
  const StoredModel& stored_;
  models::LatentShape shape_;
  std::shared_ptr<models::VideoTokenizer> tokenizer_;
  data::LatentScale latent_scale_;
  std::unique_ptr<models::Dit> dit_;
  std::vector<at::Tensor> texts_;
  at::Tensor negative_text_;
};

void warn(const std::string& line, comm::World& world) {
  if (!line.empty() && world.is_first()) log::warning("generate", "{}", line);
}

// Of all prompts, and of the negative prompt after them. `kept`: the encoder, where it is not to leave the GPU.
std::vector<at::Tensor> encode_prompts(const GenerateOptions& options, const std::vector<std::string>& prompts,
                                       const StoredModel& stored, const RunContext& context,
                                       std::shared_ptr<models::TextEncoder>& kept) {
  comm::World& world = *context.world;
  world.set_place("encoding the prompts");
  std::vector<std::string> texts = prompts;
  if (!options.negative_prompt.empty()) texts.push_back(options.negative_prompt);
  return encode_texts(texts, world, context.device, [&] {
    std::shared_ptr<models::TextEncoder> encoder = open_text_encoder(stored.encoders, options, context.device);
    warn(check_fits(*encoder, stored.encoders), world);
    require_text_width(stored, encoder->width());
    if (!options.text_encoder_offload) kept = encoder;
    return encoder;
  });
}

// The options that ranks must agree on (paths may differ between hosts) and the prompts, a line each.
std::string common_text(const GenerateOptions& options, const std::vector<std::string>& prompts) {
  std::string text;
  const auto add = [&](const auto& field) {
    const auto& value = options.*field.member;
    using T = std::decay_t<decltype(value)>;
    if constexpr (config::NamedEnum<T>) {
      text += fmt::format("{}={}\n", field.name, config::enum_name(value));
    } else if constexpr (std::is_same_v<T, std::optional<double>>) {
      text += fmt::format("{}={}\n", field.name, value ? fmt::format("{}", *value) : "null");
    } else if constexpr (!std::is_same_v<T, std::filesystem::path>) {
      text += fmt::format("{}={}\n", field.name, value);
    }
  };
  std::apply([&](const auto&... fields) { (add(fields), ...); }, GenerateOptions::fields());
  for (const std::string& prompt : prompts) text += fmt::format("prompt {}\n", prompt);
  return text;
}

void say_who_does_what(const Teams& teams, comm::World& world, std::size_t num_prompts) {
  if (world.size() == 1 || !world.is_first()) return;
  const auto num_pairs =
      std::count_if(teams.list().begin(), teams.list().end(), [](const Team& team) { return team.num_groups == 2; });
  log::info("generate", "{} prompt{} over {} ranks: {} at a time{}{}", num_prompts, num_prompts == 1 ? "" : "s",
            world.size(), teams.list().size(),
            num_pairs == 0 ? "" : fmt::format(", {} with the branches of guidance side by side", num_pairs),
            teams.num_spare_ranks() == 0 ? "" : fmt::format(", {} ranks idle", teams.num_spare_ranks()));
}

std::vector<GeneratedFile> run_checked(const GenerateOptions& options, const RunContext& context) {
  const at::NoGradGuard no_grad;
  const std::vector<std::string> prompts = read_prompts(options);
  comm::World& world = *context.world;
  const Teams teams(options, world.size(), prompts.size());
  world.require_same("options of generate", common_text(options, prompts));
  say_who_does_what(teams, world, prompts.size());
  const comm::GroupPtr all = world.all();
  const Place place = teams.place_of(world.rank());
  const StoredModel stored = open_stored_model(options);
  if (world.is_first()) describe(stored);
  std::optional<Groups> groups;
  if (place.team >= 0) groups.emplace(place, world);
  // Before anything that takes long: what does not fit is said at once.
  std::shared_ptr<models::VideoTokenizer> tokenizer;
  if (groups && (groups->is_writer() || !stored.encoders.has_card)) {
    tokenizer = open_tokenizer(stored.encoders, options, context.device);
    warn(check_fits(*tokenizer, stored.encoders), world);
  }
  const models::LatentShape shape =
      place.team < 0 ? models::LatentShape{} : latent_shape(options, stored, tokenizer.get());
  std::shared_ptr<models::TextEncoder> kept;
  std::vector<at::Tensor> texts = encode_prompts(options, prompts, stored, context, kept);
  std::unique_ptr<Generator> generator;
  if (place.team >= 0) {
    generator = std::make_unique<Generator>(options, context, *groups, stored, tokenizer, shape, std::move(texts));
    if (groups->is_writer() && options.video_save_path.has_parent_path()) {
      std::filesystem::create_directories(options.video_save_path.parent_path());
    }
  }
  // All ranks meet after each step, those without a prompt too: so nobody waits for longer than a step at the end, and
  // a rank that hangs is noticed.
  std::optional<Progress> progress;
  if (world.is_first()) {
    progress.emplace("generate", teams.num_rounds() * static_cast<std::uint64_t>(options.num_steps), "steps");
  }
  std::vector<GeneratedFile> files;
  for (std::size_t round = 0; round < teams.num_rounds(); ++round) {
    const std::size_t index = round * teams.list().size() + static_cast<std::size_t>(std::max(place.team, 0));
    const bool is_idle = place.team < 0 || index >= prompts.size();
    if (progress) progress->set_note(fmt::format("prompt {}/{}", index + 1, prompts.size()));
    const auto on_step = [&](std::int64_t step) {
      world.set_place(is_idle ? "idle"
                              : fmt::format("prompt {}, step {} of {} done", index, step + 1, options.num_steps));
      if (!all->is_alone()) all->barrier();
      if (progress) progress->advance(1);
    };
    if (is_idle) {
      for (std::int64_t step = 0; step < options.num_steps; ++step) on_step(step);
    } else if (auto file = generator->make(index, prompts[index],
                                           teams.list()[static_cast<std::size_t>(place.team)].first_rank, on_step)) {
      files.push_back(std::move(*file));
    }
  }
  if (progress) progress->finish();
  return files;
}

}  // namespace

void fetch(const GenerateOptions& options) {
  const std::filesystem::path weights = find_weights(options.checkpoint);
  fetch_encoders(choose_encoders(options, stored_facts(weights).card, weights.string()), options);
}

std::vector<GeneratedFile> run(const GenerateOptions& options, const RunContext& context) {
  require_valid(options);
  try {
    return run_checked(options, context);
  } catch (const c10::OutOfMemoryError& error) {
    throw ResourceError(
        "memory of the GPU: got {}x{}x{} frames, which does not fit, want a smaller clip ({}); hint: "
        "lower --num-video-frames, --height or --width, more ranks a video (--cp-size), or, where it is decoding that "
        "does not fit, --decode-tile 256",
        options.height, options.width, options.num_video_frames, error.what_without_backtrace());
  }
}

std::vector<std::string> report(const std::vector<GeneratedFile>& files, comm::World& world) {
  std::string mine;  // "INDEX LINE" a file
  for (const GeneratedFile& file : files) {
    std::string path = file.path.string();
    std::replace(path.begin(), path.end(), '\n', '?');
    mine += fmt::format("{} {}: {}x{}, {}, {}\n", file.index, path, file.height, file.width,
                        file.frames == 1 ? "a picture" : fmt::format("{} frames at {} fps", file.frames, file.fps),
                        format_duration(file.seconds));
  }
  std::map<std::uint64_t, std::string> by_index;
  for (const std::string& text : world.gather_text(mine)) {
    std::istringstream lines(text);
    std::uint64_t index = 0;
    for (std::string line; lines >> index && std::getline(lines.ignore(1), line);) by_index[index] = line;
  }
  std::vector<std::string> report;
  if (!world.is_first()) return report;
  for (auto& [index, line] : by_index) report.push_back(std::move(line));
  return report;
}

}  // namespace dfm::generate
