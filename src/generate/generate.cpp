#include "dfm/generate/generate.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <sstream>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/log.h"
#include "dfm/base/philox.h"
#include "dfm/base/progress.h"
#include "dfm/diffusion/edm.h"
#include "dfm/formats/media.h"
#include "dfm/models/encoders.h"
#include "dfm/ops/philox_normal.h"
#include "generate/denoiser.h"
#include "generate/frames.h"
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

struct Model {
  std::unique_ptr<models::Dit> dit;
  std::unique_ptr<models::VideoTokenizer> tokenizer;
  std::unique_ptr<models::TextEncoder> text_encoder;
  double card_fps = 0;
  std::string where;
};

// The encoders are made, and checked against the weights' shapes, before any weight is read.
Model load_model(const GenerateOptions& options, at::Device device) {
  Model model;
  const std::filesystem::path weights = find_weights(options.checkpoint);
  model.where = weights.string();
  StoredFacts facts = stored_facts(weights);
  if (!facts.card) {
    log::warning("generate", "{}: no card of a data set beside it; taking the builtin tokenizer and text encoder",
                 model.where);
    facts.card.emplace();
  }
  model.card_fps = facts.card->fps;
  model.tokenizer = models::make_tokenizer(facts.card->tokenizer, device);
  model.text_encoder = models::make_text_encoder(facts.card->text_encoder, device);

  const checkpoint::TensorFile file(weights);
  const models::DitConfig config = infer_config(file.entries(), model.where, facts);
  if (config.in_channels != model.tokenizer->latent_channels()) {
    throw CheckpointError("{}: got a model of {} latent channels, want {} as tokenizer {} has", model.where,
                          config.in_channels, model.tokenizer->latent_channels(), model.tokenizer->name());
  }
  if (config.crossattn_emb_size != model.text_encoder->width()) {
    throw CheckpointError("{}: got a model for text rows of width {}, want {} as text encoder {} has", model.where,
                          config.crossattn_emb_size, model.text_encoder->width(), model.text_encoder->name());
  }
  const std::int64_t k = model.tokenizer->temporal_compression();
  if ((options.num_video_frames - 1) % k != 0) {
    throw ConfigError("num_video_frames: got {}, want 1 + {} n (tokenizer {}); hint: {}", options.num_video_frames, k,
                      model.tokenizer->name(), nearest_frames_hint(options.num_video_frames, k));
  }
  const std::int64_t side = model.tokenizer->spatial_compression() * config.patch_spatial;
  if (options.height % side != 0 || options.width % side != 0) {
    throw ConfigError("height and width: got {}x{}, want multiples of {} (tokenizer {})", options.height, options.width,
                      side, model.tokenizer->name());
  }
  const at::ScalarType dtype = device.is_cuda() ? at::kBFloat16 : at::kFloat;
  model.dit = std::make_unique<models::Dit>(config, dtype, device, /*seed=*/0);
  model.dit->load(file.read_all(), model.where);
  log::info("generate", "{}: {} layers, hidden size {}, tokenizer {}, text encoder {}", model.where, config.num_layers,
            config.hidden_size, model.tokenizer->name(), model.text_encoder->name());
  return model;
}

// uint8 [T, H, W, 3] on the CPU, a few frames at a time: pixels of a long clip in floating point are 4 bytes a value.
at::Tensor to_rgb(const at::Tensor& pixels_CTHW) {
  constexpr std::int64_t kFramesAtOnce = 8;
  const std::int64_t frames = pixels_CTHW.size(1);
  const at::Tensor rgb = at::empty({frames, pixels_CTHW.size(2), pixels_CTHW.size(3), 3}, at::kByte);
  for (std::int64_t t = 0; t < frames; t += kFramesAtOnce) {
    const std::int64_t n = std::min(kFramesAtOnce, frames - t);
    const at::Tensor part = pixels_CTHW.narrow(1, t, n).add(1).mul_(127.5).round_().clamp_(0, 255).to(at::kByte);
    rgb.narrow(0, t, n).copy_(part.permute({1, 2, 3, 0}));
  }
  return rgb;
}

class Generator {
 public:
  Generator(const GenerateOptions& options, const RunContext& context, std::size_t num_prompts)
      : options_(options), device_(context.device), num_prompts_(num_prompts), model_(load_model(options, device_)) {
    shape_ = {.channels = model_.tokenizer->latent_channels(),
              .frames = 1 + (options.num_video_frames - 1) / model_.tokenizer->temporal_compression(),
              .height = options.height / model_.tokenizer->spatial_compression(),
              .width = options.width / model_.tokenizer->spatial_compression()};
    if (!options.negative_prompt.empty()) {
      negative_text_ = encode_text(options.negative_prompt);
    } else {
      negative_text_ = at::zeros({0, model_.text_encoder->width()});
    }
  }

  [[nodiscard]] double file_fps() const {
    return options_.fps.value_or(model_.card_fps > 0 ? model_.card_fps : kDefaultFps);
  }

  // uint8 [T, H, W, 3].
  [[nodiscard]] at::Tensor make(std::size_t index, const std::string& prompt, Progress& progress) const {
    const models::DitConfig& config = model_.dit->config();
    const double fps =
        options_.fps.value_or(model_.card_fps > 0 && options_.num_video_frames > 1 ? model_.card_fps : kUnknownFps);
    const diffusion::Denoiser denoiser =
        diffusion::guided(dit_denoiser(*model_.dit, shape_, encode_text(prompt), fps),
                          dit_denoiser(*model_.dit, shape_, negative_text_, fps), options_.guidance);
    at::Tensor epsilon =
        at::empty({shape_.num_tokens(config.patch_spatial, config.patch_temporal), config.token_channels()},
                  at::TensorOptions().dtype(at::kFloat).device(device_));
    ops::philox_normal_(epsilon, options_.seed, index, Purpose::kGenerate);
    progress.set_note(fmt::format("prompt {}/{}", index + 1, num_prompts_));
    const auto on_step = [&](std::int64_t step, std::int64_t num_steps, const at::Tensor& x) {
      if (!at::isfinite(x).all().item<bool>()) {
        throw DataError(
            "latents of prompt {}: got values that are not finite after step {} of {}, want finite ones; "
            "hint: the weights may be damaged ({})",
            index, step + 1, num_steps, model_.where);
      }
      progress.advance(1);
    };
    const at::Tensor x = diffusion::sample(
        denoiser, epsilon, {.sampler = options_.sampler, .num_steps = options_.num_steps, .on_step = on_step});
    const at::Tensor latent = models::unpatchify(x, shape_, config.patch_spatial, config.patch_temporal);
    return to_rgb(model_.tokenizer->decode((latent / diffusion::kSigmaData).to(at::kFloat)));
  }

 private:
  // Rounded to bfloat16, as the rows of a prepared data set are.
  [[nodiscard]] at::Tensor encode_text(const std::string& text) const {
    return model_.text_encoder->encode({text}).front().to(at::kBFloat16);
  }

  const GenerateOptions& options_;
  at::Device device_;
  std::size_t num_prompts_;
  Model model_;
  models::LatentShape shape_;
  at::Tensor negative_text_;
};

std::vector<GeneratedFile> run_checked(const GenerateOptions& options, const RunContext& context) {
  const at::NoGradGuard no_grad;
  const std::vector<std::string> prompts = read_prompts(options);
  const auto world_size = static_cast<std::size_t>(std::max(context.world_size, 1));
  std::vector<std::size_t> mine;
  for (auto i = static_cast<std::size_t>(context.rank); i < prompts.size(); i += world_size) mine.push_back(i);
  std::vector<GeneratedFile> files;
  if (mine.empty()) return files;

  const Generator generator(options, context, prompts.size());
  if (options.video_save_path.has_parent_path()) {
    std::filesystem::create_directories(options.video_save_path.parent_path());
  }
  Progress progress("generate", mine.size() * static_cast<std::uint64_t>(options.num_steps), "steps");
  for (const std::size_t i : mine) {
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor rgb_THW3 = generator.make(i, prompts[i], progress);
    GeneratedFile file{.path = output_path(options, i, context.rank),
                       .prompt = prompts[i],
                       .height = rgb_THW3.size(1),
                       .width = rgb_THW3.size(2),
                       .frames = rgb_THW3.size(0),
                       .fps = generator.file_fps()};
    if (file.frames == 1) {
      formats::write_png(file.path, rgb_THW3[0]);
    } else {
      formats::write_mp4(file.path, rgb_THW3, {.fps = file.fps});
    }
    file.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    files.push_back(std::move(file));
  }
  progress.finish();
  return files;
}

}  // namespace

std::vector<GeneratedFile> run(const GenerateOptions& options, const RunContext& context) {
  require_valid(options);
  try {
    return run_checked(options, context);
  } catch (const c10::OutOfMemoryError& error) {
    throw ResourceError(
        "memory of the GPU: got {}x{}x{} frames, which does not fit, want a smaller clip ({}); hint: "
        "lower --num-video-frames, --height or --width",
        options.height, options.width, options.num_video_frames, error.what_without_backtrace());
  }
}

}  // namespace dfm::generate
