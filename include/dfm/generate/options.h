#pragma once
// Options of `dfm generate`. Flags are the field names with dashes (underscores are taken too, as DFM's script does).
#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "dfm/comm/config.h"
#include "dfm/config/schema.h"
#include "dfm/diffusion/sampler.h"
#include "dfm/models/encoders.h"

namespace dfm::generate {

// Whether two groups of ranks share a prompt: one computes with the prompt, the other with the negative prompt.
enum class GuidanceParallel { kAuto, kOn, kOff };
constexpr auto enum_names(GuidanceParallel) {
  return std::array{std::pair{GuidanceParallel::kAuto, "auto"}, std::pair{GuidanceParallel::kOn, "on"},
                    std::pair{GuidanceParallel::kOff, "off"}};
}

struct GenerateOptions {
  std::string prompt;
  std::filesystem::path prompts_file;
  std::string negative_prompt;
  std::filesystem::path checkpoint = "./model.pth";
  std::string tokenizer;     // empty: what the checkpoint records
  std::string text_encoder;  // likewise
  std::filesystem::path tokenizer_cache_dir, t5_cache_dir;
  std::int64_t height = 704;
  std::int64_t width = 1280;
  std::int64_t num_video_frames = 121;
  std::int64_t num_steps = 35;
  double guidance = 7.0;
  diffusion::Sampler sampler = diffusion::Sampler::kEdmEuler;
  std::uint64_t seed = 1;
  std::optional<double> fps;
  models::Precision precision = models::Precision::kAuto;
  bool text_encoder_offload = true;
  std::int64_t decode_window = 0;
  std::int64_t decode_tile = 0;
  std::int64_t cp_size = 1;
  GuidanceParallel guidance_parallel = GuidanceParallel::kAuto;
  comm::Backend distributed_backend = comm::Backend::kAuto;
  double distributed_timeout_minutes = comm::DistConfig{}.distributed_timeout_minutes;
  std::filesystem::path video_save_path = "outputs/video.mp4";

  static constexpr auto fields() {
    using config::field, config::positive;
    return config::fields<GenerateOptions>(
        field("prompt", &GenerateOptions::prompt, "What the video shows"),
        field("prompts_file", &GenerateOptions::prompts_file, "A prompt a line; each makes its own file"),
        field("negative_prompt", &GenerateOptions::negative_prompt, "What guidance moves away from; default: no text"),
        field("checkpoint", &GenerateOptions::checkpoint, "Weight file, iteration folder or run folder"),
        field("tokenizer", &GenerateOptions::tokenizer,
              "Folder, file or hub id of the video tokenizer, where it is not what the checkpoint records; must give "
              "the latents that the model was trained on"),
        field("text_encoder", &GenerateOptions::text_encoder,
              "Folder or hub id of the text encoder, where it is not what the checkpoint records"),
        field("tokenizer_cache_dir", &GenerateOptions::tokenizer_cache_dir,
              "Cache folder of the hub for the tokenizer; default: $HF_HUB_CACHE"),
        field("t5_cache_dir", &GenerateOptions::t5_cache_dir,
              "Cache folder of the hub for the text encoder; default: $HF_HUB_CACHE"),
        field("height", &GenerateOptions::height,
              "Pixels, a multiple of twice the tokenizer's compression: 16, or 32 with Cosmos 16x16", positive),
        field("width", &GenerateOptions::width, "Pixels, likewise", positive),
        field("num_video_frames", &GenerateOptions::num_video_frames,
              "Pixel frames, 1 + k n with the tokenizer's k: 4, or 8 with Cosmos 8x8x8 and 8x16x16; 1 writes a PNG",
              positive),
        field("num_steps", &GenerateOptions::num_steps, "Sampling steps", positive),
        field("guidance", &GenerateOptions::guidance, "g in c + g (c - u): the usual scale less 1",
              config::non_negative),
        field("sampler", &GenerateOptions::sampler,
              "edm_euler (DFM's result at half its cost) or dpmpp_2m (second order)"),
        field("seed", &GenerateOptions::seed, "Key of the noise; the same seed gives the same file"),
        field("fps", &GenerateOptions::fps, "Frames a second of the file; default: the data set's most common, else 24",
              positive),
        field("precision", &GenerateOptions::precision,
              "Of the model and the encoders; auto: bf16 on a GPU, fp32 on a CPU"),
        field("text_encoder_offload", &GenerateOptions::text_encoder_offload,
              "The text encoder is on the GPU layer by layer, only while it encodes"),
        field("decode_window", &GenerateOptions::decode_window,
              "Latent frames that the tokenizer's temporal attention looks back while it decodes: bounds memory, "
              "changes pixels a little; 0: all of them",
              config::non_negative),
        field("decode_tile", &GenerateOptions::decode_tile,
              "Side in pixels of tiles that are decoded one by one and blended: saves memory, changes pixels a little; "
              "0: whole frames, exact",
              config::non_negative),
        field("cp_size", &GenerateOptions::cp_size,
              "Ranks that share a video's tokens; must divide the number of ranks", positive),
        field("guidance_parallel", &GenerateOptions::guidance_parallel,
              "Two groups of cp-size ranks share a prompt, one computes c, the other u; auto: where there are fewer "
              "prompts than groups"),
        field("distributed_backend", &GenerateOptions::distributed_backend,
              "nccl (a GPU a rank), shm (ranks of one host, CPUs or one GPU); auto: nccl on GPUs, shm on CPUs"),
        field("distributed_timeout_minutes", &GenerateOptions::distributed_timeout_minutes,
              "How long a rank waits for the others, at most a step, the decoding of a video or the encoding of all "
              "prompts",
              positive),
        field("video_save_path", &GenerateOptions::video_save_path,
              "Output; DIR/NAME.mp4 is written as DIR/idx=I_rank=R_NAME.mp4"));
  }
  void check(config::Problems& problems) const;
};

}  // namespace dfm::generate
