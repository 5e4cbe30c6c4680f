#include "generate/model.h"

#include <ATen/ATen.h>

#include "dfm/base/error.h"
#include "dfm/base/log.h"
#include "generate/frames.h"
#include "generate/weights.h"

namespace dfm::generate {
namespace {

void require_multiple(const char* option, std::int64_t value, std::int64_t multiple, const std::string& tokenizer) {
  if (value % multiple == 0) return;
  const std::int64_t below = value / multiple * multiple;
  throw ConfigError("{}: got {}, want a multiple of {} (tokenizer {}); hint: {}", option, value, multiple, tokenizer,
                    below == 0 ? fmt::format("the nearest is {}", multiple)
                               : fmt::format("the nearest are {} and {}", below, below + multiple));
}

}  // namespace

StoredModel open_stored_model(const GenerateOptions& options) {
  StoredModel stored;
  stored.weights = find_weights(options.checkpoint);
  const std::string where = stored.weights.string();
  const StoredFacts facts = stored_facts(stored.weights);
  stored.encoders = choose_encoders(options, facts.card, where);
  stored.config = infer_config(checkpoint::TensorFile(stored.weights).entries(), where, facts);
  return stored;
}

void require_text_width(const StoredModel& stored, std::int64_t width) {
  if (stored.config.crossattn_emb_size == width) return;
  throw CheckpointError("{}: got a model for text rows of width {}, want {} as text encoder {} has",
                        stored.weights.string(), stored.config.crossattn_emb_size, width, stored.encoders.text_encoder);
}

models::LatentShape latent_shape(const GenerateOptions& options, const StoredModel& stored,
                                 const models::VideoTokenizer* tokenizer) {
  const data::DatasetCard& card = stored.encoders.card;
  const std::int64_t channels = tokenizer != nullptr ? tokenizer->latent_channels() : card.latent_channels;
  const std::int64_t k = tokenizer != nullptr ? tokenizer->temporal_compression() : card.temporal_compression;
  const std::int64_t s = tokenizer != nullptr ? tokenizer->spatial_compression() : card.spatial_compression;
  const std::string& name = stored.encoders.tokenizer;
  if (stored.config.in_channels != channels) {
    throw CheckpointError("{}: got a model of {} latent channels, want {} as tokenizer {} has", stored.weights.string(),
                          stored.config.in_channels, channels, name);
  }
  if ((options.num_video_frames - 1) % k != 0) {
    throw ConfigError("num_video_frames: got {}, want 1 + {} n (tokenizer {}); hint: {}", options.num_video_frames, k,
                      name, nearest_frames_hint(options.num_video_frames, k));
  }
  const std::int64_t frames = 1 + (options.num_video_frames - 1) / k;
  if (frames % stored.config.patch_temporal != 0) {
    throw ConfigError("num_video_frames: got {}, which are {} latent frames, want a multiple of {} (patch_temporal)",
                      options.num_video_frames, frames, stored.config.patch_temporal);
  }
  const std::int64_t side = s * stored.config.patch_spatial;
  require_multiple("height", options.height, side, name);
  require_multiple("width", options.width, side, name);
  return {.channels = channels, .frames = frames, .height = options.height / s, .width = options.width / s};
}

std::unique_ptr<models::Dit> load_dit(const StoredModel& stored, const GenerateOptions& options, at::Device device,
                                      const comm::GroupPtr& context) {
  models::DitConfig config = stored.config;
  parallel::Parallel parallel;
  parallel.context = context;
  // All-to-all sends each token once, p2p its keys and values to every rank.
  parallel.context_comm =
      config.num_attention_heads % context->size() == 0 ? parallel::ContextComm::kA2a : parallel::ContextComm::kP2p;
  config.context_parallel_size = context->size();
  config.cp_comm_type = parallel.context_comm;
  const bool is_bf16 = options.precision == models::Precision::kBf16 ||
                       (options.precision == models::Precision::kAuto && device.is_cuda());
  auto dit = std::make_unique<models::Dit>(config, is_bf16 ? at::kBFloat16 : at::kFloat, device, /*seed=*/0, parallel);
  dit->load(checkpoint::TensorFile(stored.weights).read_all(), stored.weights.string());
  return dit;
}

void describe(const StoredModel& stored) {
  const EncoderChoice& encoders = stored.encoders;
  const std::string where = stored.weights.string();
  if (!encoders.has_card && !(encoders.is_own_tokenizer && encoders.is_own_text_encoder)) {
    log::warning("generate", "{}: no card of a data set beside it; taking {}", where,
                 encoders.is_own_tokenizer      ? "the builtin text encoder"
                 : encoders.is_own_text_encoder ? "the builtin tokenizer"
                                                : "the builtin tokenizer and text encoder");
  }
  log::info("generate", "{}: {} layers, hidden size {}, tokenizer {}, text encoder {}", where, stored.config.num_layers,
            stored.config.hidden_size, encoders.tokenizer, encoders.text_encoder);
}

}  // namespace dfm::generate
